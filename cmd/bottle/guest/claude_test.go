package guest

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestApproved(t *testing.T) {
	for state, want := range map[string]string{
		`{}`: `{"customApiKeyResponses":{"approved":["part"]}}`,
		`{"a":1,"customApiKeyResponses":{"approved":["x"],"rejected":["y"]}}`: `{"a":1,"customApiKeyResponses":{"approved":["x","part"],"rejected":["y"]}}`,
		`{"customApiKeyResponses":{"approved":["part"]}}`:                     "",
		`{"customApiKeyResponses":{"rejected":["part"]}}`:                     "",
	} {
		got, err := approved([]byte(state), "part")
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			if got != nil {
				t.Errorf("approved(%s) = %s, want %s", state, got, want)
			}
			continue
		}
		var g, w any
		if err := json.Unmarshal(got, &g); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(want), &w); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(g, w) {
			t.Errorf("approved(%s) = %s, want %s", state, got, want)
		}
	}
	for _, bad := range []string{"", "[]", `{"customApiKeyResponses":1}`} {
		if got, err := approved([]byte(bad), "part"); err == nil {
			t.Errorf("approved(%q) = %s, want an error", bad, got)
		}
	}
}
