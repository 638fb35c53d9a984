package audit

import (
	"reflect"
	"strconv"
	"strings"
)

// field is a field of a record under its documented name.
type field struct {
	name  string
	value reflect.Value
}

// fields returns all fields of a record, in order. The values can be set.
func fields(r *record) []field {
	var out []field
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		for i := range v.NumField() {
			if v.Type().Field(i).Anonymous {
				walk(v.Field(i))
				continue
			}
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			out = append(out, field{name, v.Field(i)})
		}
	}
	walk(reflect.ValueOf(r).Elem())
	return out
}

// texts returns the values of a field as they are written to the journal; none: the field
// does not apply.
func (f field) texts() []string {
	switch v := f.value.Interface().(type) {
	case string:
		if v != "" {
			return []string{v}
		}
	case []string:
		return v
	case int:
		return []string{strconv.Itoa(v)}
	case *uint32:
		if v != nil {
			return []string{strconv.FormatUint(uint64(*v), 10)}
		}
	case *bool:
		if v != nil {
			return []string{strconv.FormatBool(*v)}
		}
	}
	return nil
}
