package kubernetes

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// lines is a writer that passes each line on.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func listening(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// TestGate: the gate opens only when nothing but the proxy answers, and says what it waits
// for.
func TestGate(t *testing.T) {
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	node, api := listening(t), listening(t)
	// A proxy that accepts and does not answer is not there yet.
	g := Gate{
		Proxy: proxy.Listener.Addr().String(), Closed: []string{node.Addr().String(), api.Addr().String()},
		Dial: 200 * time.Millisecond, Pause: 10 * time.Millisecond,
	}
	out := make(lines)
	ended := make(chan error, 1)
	go func() { ended <- g.Wait(t.Context(), out) }()
	expect := func(parts ...string) {
		t.Helper()
		select {
		case line := <-out:
			for _, p := range parts {
				if !strings.Contains(line, p) {
					t.Errorf("got %q, want it to contain %q", line, p)
				}
			}
		case err := <-ended:
			t.Fatalf("the gate ended: %v", err)
		}
	}
	expect("no NetworkPolicy is enforced", node.Addr().String(), api.Addr().String())
	_ = node.Close()
	expect("no NetworkPolicy is enforced", api.Addr().String())
	_ = api.Close()
	expect("the proxy does not answer")
	proxy.Start()
	defer proxy.Close()
	expect("nothing else can be reached")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestGateErrors(t *testing.T) {
	for _, tc := range []struct {
		gate Gate
		want string
	}{
		{Gate{Proxy: "$(PROXY_SERVICE_HOST):8888"}, "create the pod again"},
		{Gate{Proxy: "127.0.0.1:1", Closed: []string{"$(NODE_IP):1"}}, "create the pod again"},
		{Gate{Proxy: "proxy:8888"}, "invalid address"},
		{Gate{}, "invalid address"},
	} {
		if err := tc.gate.Wait(t.Context(), lines(nil)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.gate, err, tc.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	open := listening(t)
	out := make(lines, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- Gate{Proxy: "127.0.0.1:1", Closed: []string{open.Addr().String()}}.Wait(ctx, out)
	}()
	<-out
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestWallAddress(t *testing.T) {
	for _, text := range []string{"", "$(PROXY_SERVICE_HOST)", "proxy", "::1"} {
		if err := Wall(text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}
