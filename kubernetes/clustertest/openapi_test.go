//go:build kube

package clustertest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	k8syaml "sigs.k8s.io/yaml"
)

// schema is what is used of a schema in the API's OpenAPI document, version 3.
type schema struct {
	Ref        string                                  `json:"$ref"`
	AllOf      []schema                                `json:"allOf"`
	OneOf      []schema                                `json:"oneOf"`
	Type       string                                  `json:"type"`
	Format     string                                  `json:"format"`
	Properties map[string]schema                       `json:"properties"`
	Additional *schema                                 `json:"additionalProperties"`
	Items      *schema                                 `json:"items"`
	Required   []string                                `json:"required"`
	Kinds      []struct{ Group, Version, Kind string } `json:"x-kubernetes-group-version-kind"`
}

// schemas are those of one version of the API, by name.
type schemas map[string]schema

// openAPI validates the objects of an export against the OpenAPI document that the cluster's
// API publishes.
func openAPI(t *testing.T, objects string) {
	t.Helper()
	known := map[string]schemas{}
	of := func(object map[string]any) schemas {
		version, _ := object["apiVersion"].(string)
		if known[version] == nil {
			path := "/openapi/v3/apis/" + version
			if !strings.Contains(version, "/") {
				path = "/openapi/v3/api/" + version
			}
			var doc struct{ Components struct{ Schemas schemas } }
			if err := json.Unmarshal([]byte(kubectl(t, "", "get", "--raw", path)), &doc); err != nil {
				t.Fatal(err)
			}
			known[version] = doc.Components.Schemas
		}
		return known[version]
	}
	docs := strings.Split(objects, "\n---\n")[1:]
	for _, doc := range docs {
		var object map[string]any
		if err := k8syaml.Unmarshal([]byte(doc), &object); err != nil {
			t.Fatal(err)
		}
		if problems := of(object).object(object); len(problems) > 0 {
			t.Errorf("not valid by the API's OpenAPI document: %q\n%s", problems, doc)
		}
	}
	if len(docs) < 8 {
		t.Errorf("%d objects", len(docs))
	}
	// Control: what is wrong is reported.
	for _, change := range []func(pod map[string]any){
		func(pod map[string]any) { pod["spec"].(map[string]any)["runtimeClass"] = "gvisor" },
		func(pod map[string]any) { pod["spec"].(map[string]any)["enableServiceLinks"] = "true" },
		func(pod map[string]any) { delete(pod["spec"].(map[string]any), "containers") },
		func(pod map[string]any) { pod["kind"] = "Pods" },
	} {
		var pod map[string]any
		if err := k8syaml.Unmarshal([]byte(docs[len(docs)-1]), &pod); err != nil {
			t.Fatal(err)
		}
		change(pod)
		if problems := of(pod).object(pod); len(problems) != 1 {
			t.Errorf("control: the problems of an invalid pod: %q", problems)
		}
	}
}

// object returns what is wrong with an object.
func (s schemas) object(object map[string]any) []string {
	for _, candidate := range s {
		for _, k := range candidate.Kinds {
			version := strings.TrimPrefix(k.Group+"/"+k.Version, "/")
			if k.Kind == object["kind"] && version == object["apiVersion"] {
				return s.check("", candidate, object)
			}
		}
	}
	return []string{fmt.Sprintf("no schema for %v %v", object["apiVersion"], object["kind"])}
}

func (s schemas) check(path string, want schema, value any) (problems []string) {
	switch {
	case want.Ref != "":
		name := strings.TrimPrefix(want.Ref, "#/components/schemas/")
		next, ok := s[name]
		if !ok {
			return []string{path + ": no schema " + name}
		}
		return s.check(path, next, value)
	case len(want.AllOf) > 0:
		for _, next := range want.AllOf {
			problems = append(problems, s.check(path, next, value)...)
		}
		return problems
	case len(want.OneOf) > 0: // a quantity, or a number or name of a port
		for _, next := range want.OneOf {
			if problems = s.check(path, next, value); len(problems) == 0 {
				return nil
			}
		}
		return problems
	}
	switch v := value.(type) {
	case map[string]any:
		if want.Type != "object" {
			break
		}
		for _, name := range want.Required {
			if _, ok := v[name]; !ok {
				problems = append(problems, path+"."+name+": missing")
			}
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			next, ok := want.Properties[name]
			if !ok && want.Additional != nil {
				next, ok = *want.Additional, true
			}
			if !ok {
				problems = append(problems, path+"."+name+": unknown")
				continue
			}
			problems = append(problems, s.check(path+"."+name, next, v[name])...)
		}
		return problems
	case []any:
		if want.Type != "array" || want.Items == nil {
			break
		}
		for i, item := range v {
			problems = append(problems, s.check(fmt.Sprintf("%s[%d]", path, i), *want.Items, item)...)
		}
		return problems
	case string:
		if want.Type == "string" {
			return nil
		}
	case bool:
		if want.Type == "boolean" {
			return nil
		}
	case float64:
		if want.Type == "number" || want.Type == "integer" && v == float64(int64(v)) {
			return nil
		}
	}
	return []string{fmt.Sprintf("%s: %v is not of type %s", path, value, want.Type)}
}
