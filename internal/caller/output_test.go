package caller

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/hint"
)

func outputCaller(t *testing.T) Caller {
	t.Helper()
	return Caller{
		Home: t.TempDir(), UID: os.Getuid(), GID: os.Getgid(),
		Getenv: func(name string) (string, bool) { return "of-" + name, name == "LANG" || name == "SECRET" },
	}
}

// TestOutput: a command gets a clean environment, and its output and errors come back.
func TestOutput(t *testing.T) {
	t.Setenv("OF_THIS_PROCESS", "1")
	c := outputCaller(t)
	var stderr bytes.Buffer
	out, err := c.Output(t.Context(), []string{"sh", "-c", "env; pwd; echo asks >&2"}, 4096, &stderr)
	if err != nil {
		t.Fatal(err)
	}
	text := string(out)
	for _, want := range []string{"HOME=" + c.Home + "\n", "PATH=/usr/local/bin:/usr/bin:/bin\n", "LANG=of-LANG\n", "\n/\n"} {
		if !strings.Contains("\n"+text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, never := range []string{"OF_THIS_PROCESS", "SECRET"} {
		if strings.Contains(text, never) {
			t.Errorf("%s is in the environment:\n%s", never, text)
		}
	}
	if stderr.String() != "asks\n" {
		t.Errorf("standard error %q", stderr.String())
	}
}

func TestOutputFails(t *testing.T) {
	c := outputCaller(t)
	for name, tt := range map[string]struct {
		command []string
		want    string
	}{
		"exit code": {[]string{"sh", "-c", "exit 3"}, "exit status 3"},
		"too long":  {[]string{"sh", "-c", "yes"}, "printed more than 100 bytes"},
		"missing":   {[]string{"no-such-program"}, "unknown program"},
		"relative":  {[]string{"./x"}, "a relative path"},
	} {
		if out, err := c.Output(t.Context(), tt.command, 100, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %q, %v", name, out, err)
		} else if (name == "missing" || name == "relative") && hint.Of(err) == "" {
			t.Errorf("%s: no hint", name)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Output(ctx, []string{"sleep", "60"}, 100, &bytes.Buffer{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that never ends: %v", err)
	}
}

// TestOutputOfAnother: for root, the command runs as the caller.
func TestOutputOfAnother(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root")
	}
	c := outputCaller(t)
	c.UID, c.GID, c.Groups = 65534, 65533, []int{65532}
	out, err := c.Output(t.Context(), []string{"sh", "-c", "id -u; id -g; id -G; umask >/dev/null; cat /proc/self/status | grep -c '^CapEff:.0000000000000000$'"}, 4096, &bytes.Buffer{})
	if err != nil || string(out) != "65534\n65533\n65533 65532\n1\n" {
		t.Errorf("%q, %v", out, err)
	}
}
