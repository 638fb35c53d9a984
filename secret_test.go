package bottle

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

const testSecret = "hunter2-secret"

// forms are how a value can show itself.
func forms(value string) []string {
	return []string{value, fmt.Sprintf("%x", value), fmt.Sprintf("%X", value), fmt.Sprintf("% x", value), fmt.Sprintf("%d", []byte(value))}
}

func checkHidden(t *testing.T, how, text string) {
	t.Helper()
	for _, form := range forms(testSecret) {
		if strings.Contains(text, form) {
			t.Errorf("%s shows the value: %s", how, text)
		}
	}
}

func TestSecretIsNeverPrinted(t *testing.T) {
	const value = testSecret
	s := NewSecret(value)
	if s.Reveal() != value {
		t.Fatalf("Reveal() = %q", s.Reveal())
	}
	plan := &Plan{Name: "n", Env: []EnvVar{{Name: "TOKEN", Source: SourceForwarded, Secret: s}}}
	type private struct{ secret Secret }
	things := map[string]any{
		"secret": s, "pointer": &s, "slice": []Secret{s}, "map": map[string]Secret{"k": s}, "key": map[Secret]int{s: 1},
		"plan": *plan, "plan pointer": plan, "variable": plan.Env[0], "any": []any{s}, "unexported": private{s}, "resolver": envResolver{vars: plan.Env},
	}
	for name, v := range things {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%t", "%p", "%c", "%U", "%10.3s", "%z", "%!"} {
			checkHidden(t, name+" "+verb, fmt.Sprintf(verb, v))
		}
		checkHidden(t, name+" Print", fmt.Sprint(v)+fmt.Sprintln(v))
		checkHidden(t, name+" error", fmt.Errorf("%v: %w", v, errors.New("x")).Error())
		if data, err := json.Marshal(v); err == nil {
			checkHidden(t, name+" json", string(data))
		}
		if data, err := yaml.Marshal(v); err == nil {
			checkHidden(t, name+" yaml", string(data))
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "k", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "k", v)
		checkHidden(t, name+" slog", log.String())
	}
	for _, got := range []string{fmt.Sprint(s), fmt.Sprintf("%q", s)} {
		if got != hidden {
			t.Errorf("got %q, want %q", got, hidden)
		}
	}
	if data, err := json.Marshal(s); err != nil || string(data) != `"`+hidden+`"` {
		t.Errorf("json: %s, %v", data, err)
	}
	if (Secret{}).Reveal() != "" || fmt.Sprint(Secret{}) != hidden {
		t.Error("the zero value is not an empty secret")
	}
}
