package secrettest

import "testing"

// recorder counts errors in place of the test.
type recorder struct {
	testing.TB
	errors int
}

func (r *recorder) Errorf(string, ...any) { r.errors++ }
func (r *recorder) Helper()               {}

// TestPlainStringIsFound is the control: a value that is not hidden is reported.
func TestPlainStringIsFound(t *testing.T) {
	r := &recorder{TB: t}
	CheckHidden(r, "plain", struct{ Value string }{"hunter2-secret"}, "hunter2-secret")
	if r.errors < len(verbs) {
		t.Errorf("%d errors for a value that is printed in clear, want at least one for each of %d verbs", r.errors, len(verbs))
	}
}
