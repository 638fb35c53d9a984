package secret

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/bot-bottle/bottle/internal/secret/secrettest"
)

const testSecret = "hunter2-secret"

func TestSecretIsNeverPrinted(t *testing.T) {
	s := New(testSecret)
	type private struct{ secret Value }
	for name, v := range map[string]any{
		"secret": s, "pointer": &s, "slice": []Value{s}, "map": map[string]Value{"k": s}, "key": map[Value]int{s: 1},
		"any": []any{s}, "unexported": private{s},
	} {
		secrettest.CheckHidden(t, name, v, testSecret)
	}
	if s.Reveal() != testSecret {
		t.Fatalf("Reveal() = %q", s.Reveal())
	}
	for _, got := range []string{fmt.Sprint(s), fmt.Sprintf("%q", s)} {
		if got != hidden {
			t.Errorf("got %q, want %q", got, hidden)
		}
	}
	if data, err := json.Marshal(s); err != nil || string(data) != `"`+hidden+`"` {
		t.Errorf("json: %s, %v", data, err)
	}
	if (Value{}).Reveal() != "" || fmt.Sprint(Value{}) != hidden {
		t.Error("the zero value is not an empty secret")
	}
}
