// Package secrettest checks that a secret is not printed by accident.
package secrettest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// verbs are fmt's verbs, with flags, and some that fmt does not know.
var verbs = []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%t", "%p", "%c", "%U", "%10.3s", "%z", "%!"}

// CheckHidden formats, encodes and logs v in every way that the standard library
// and the YAML library offer, and reports an error where the secret value appears.
func CheckHidden(t testing.TB, name string, v any, value string) {
	t.Helper()
	for _, verb := range verbs {
		checkText(t, name+" "+verb, fmt.Sprintf(verb, v), value)
	}
	checkText(t, name+" Print", fmt.Sprint(v)+fmt.Sprintln(v), value)
	checkText(t, name+" error", fmt.Errorf("%v: %w", v, errors.New("x")).Error(), value)
	if data, err := json.Marshal(v); err == nil {
		checkText(t, name+" json", string(data), value)
	}
	if data, err := yaml.Marshal(v); err == nil {
		checkText(t, name+" yaml", string(data), value)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "k", v)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "k", v)
	checkText(t, name+" slog", log.String(), value)
}

func checkText(t testing.TB, how, text, value string) {
	t.Helper()
	for _, form := range forms(value) {
		if strings.Contains(text, form) {
			t.Errorf("%s shows the value: %s", how, text)
		}
	}
}

// forms are the encodings in which fmt can show a value.
func forms(value string) []string {
	return []string{value, fmt.Sprintf("%x", value), fmt.Sprintf("%X", value), fmt.Sprintf("% x", value), fmt.Sprintf("%d", []byte(value))}
}
