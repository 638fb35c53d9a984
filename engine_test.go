package bottle

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bot-bottle/bottle/internal/hint"
)

// TestExplain: the error of a containerd that hangs gets a hint, unless it has one.
func TestExplain(t *testing.T) {
	e := &Engine{}
	silent := fmt.Errorf("list tasks: %w", status.Error(codes.DeadlineExceeded, "containerd did not answer within 1m0s"))
	if got := e.Explain(silent); !strings.Contains(hint.Of(got), "systemctl status containerd") || !errors.Is(got, silent) {
		t.Errorf("%v, hint %q", got, hint.Of(got))
	}
	own := &hint.Error{Err: silent, Hint: "bottle cleanup"}
	if got := e.Explain(own); hint.Of(got) != "bottle cleanup" {
		t.Errorf("hint %q", hint.Of(got))
	}
	other := errors.New("no such bottle")
	for _, err := range []error{other, nil} {
		if got := e.Explain(err); got != err { //nolint:errorlint // the same value, not one that wraps it
			t.Errorf("%v became %v", err, got)
		}
	}
}
