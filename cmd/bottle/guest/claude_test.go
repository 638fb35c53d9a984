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
				t.Errorf("%s becomes %s", state, got)
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
			t.Errorf("%s becomes %s", state, got)
		}
	}
	for _, bad := range []string{"", "[]", `{"customApiKeyResponses":1}`} {
		if got, err := approved([]byte(bad), "part"); err == nil {
			t.Errorf("%q becomes %s", bad, got)
		}
	}
}
