package e2e

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// slowContainerd returns the socket of a containerd that answers nothing but the request for its
// version, until it is released and refuses everything. A real one cannot be stopped between two
// requests.
func slowContainerd(t *testing.T, release chan struct{}) (address string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "containerd.sock")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(stream); method == "/containerd.services.version.v1.Version/Version" {
			if err := stream.RecvMsg(&version.VersionResponse{}); err != nil { // an empty message
				return err
			}
			return stream.SendMsg(&version.VersionResponse{Version: "v2.0.0"})
		}
		select {
		case <-release:
		case <-stream.Context().Done():
		}
		return status.Error(codes.PermissionDenied, "released")
	}))
	served := make(chan error)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return address
}

// TestBusy: on a terminal, a command that waits for containerd says after a second what for, and the
// line disappears. The controls: nothing is shown with --json or -q, nor elsewhere than on a terminal.
func TestBusy(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("TERM=xterm-256color")
	release := make(chan struct{})
	u = u.with("CONTAINERD_ADDRESS=" + slowContainerd(t, release))
	busy := map[string]*terminal{}
	for text, args := range map[string][]string{
		"reading the bottles":   {"list"},
		"reading the images":    {"images"},
		"checking this host":    {"doctor"},
		"looking for bottles":   {"cleanup", "--dry-run"},
		"preparing the plan":    {"run", "sh", "--proxy", "builtin", "--dry-run"},
		"removing no-bottle":    {"rm", "no-bottle"},
		"removing no-image":     {"rmi", "no-image"},
		"looking for no-bottle": {"fetch", "no-bottle"},
		"measuring":             {"stats", "--no-stream"},
		"asking the registry":   {"pull", "no-image"},
	} {
		busy[text] = u.onTerminal(91, 37, args...)
	}
	quiet := []*terminal{u.onTerminal(91, 37, "list", "--json"), u.onTerminal(91, 37, "list", "-q")}
	var errs bytes.Buffer
	elsewhere := u.command("list")
	elsewhere.Stderr = &errs
	if err := elsewhere.Start(); err != nil {
		t.Fatal(err)
	}
	for text, x := range busy {
		x.until("\r\x1b[K" + text)
	}
	close(release)
	for text, x := range busy {
		if rest := x.rest(); !strings.Contains(rest, "\r\x1b[K") || strings.HasSuffix(rest, " s") {
			t.Errorf("%s: the line stays: %q", text, rest)
		}
	}
	for _, x := range quiet {
		if rest := x.rest(); strings.Contains(rest, "\x1b") || strings.Contains(rest, "reading") {
			t.Errorf("%q: %q", x.cmd.Args, rest)
		}
	}
	if err := elsewhere.Wait(); err == nil || strings.Contains(errs.String(), "\x1b") || strings.Contains(errs.String(), "reading") {
		t.Errorf("without a terminal: %v, %q", err, &errs)
	}
}

// TestBusyStop: stop says so while it waits for an agent that does not end by itself.
func TestBusyStop(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("TERM=xterm-256color")
	name := u.detached("stubborn", "--", "-c", "trap '' TERM; while :; do sleep 60; done")
	x := u.onTerminal(91, 37, "stop", "-t", "2", name)
	x.until("\r\x1b[Kstopping " + name + ": 1 s")
	if rest := x.rest(); !strings.Contains(rest, "\r\x1b[K") || !strings.HasSuffix(rest, name+"\r\n") {
		t.Errorf("the rest is %q", rest)
	}
	u.bottle("rm", "-f", name).want(t, 0, name+"\n")
}

// rest reads to the end.
func (x *terminal) rest() string {
	x.t.Helper()
	x.wait()
	_ = x.far.Close() // the test's own: what remains is the end
	var rest strings.Builder
	for b := range x.out {
		rest.WriteByte(b)
	}
	return rest.String()
}
