package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/labtest/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Run(func() int { return runTests(m) })) }

// runTests assigns the world's addresses to lo and runs the tests.
func runTests(m *testing.M) int {
	var prefixes []string
	for _, a := range addresses() {
		prefixes = append(prefixes, fmt.Sprintf("%s/%d", a, a.BitLen()))
	}
	if err := nstest.AddAddresses("lo", prefixes...); err != nil {
		fmt.Fprintln(os.Stderr, "set up the test's network namespace:", err)
		return 1
	}
	return m.Run()
}

// startWorld serves until the test ends and returns the state directory.
func startWorld(t *testing.T) string {
	t.Helper()
	state := t.TempDir()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, options{state: state, ca: state, git: true}, testWriter{t}) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	waitReady(t, state, ended)
	return state
}

// waitReady waits for the ready file by polling, as the lab's init does.
func waitReady(t *testing.T, state string, ended chan error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if _, err := os.Stat(filepath.Join(state, "ready")); err == nil {
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the world exited before it was ready: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	t.Fatal("the world is not ready after 30 seconds")
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// newClient returns a client that trusts the world's authority and uses its DNS
// server.
func newClient(t *testing.T, state string) *http.Client {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join(state, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("no certificate in ca.pem")
	}
	dialer := net.Dialer{Resolver: worldResolver("udp")}
	transport := &http.Transport{DialContext: dialer.DialContext,
		TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func worldResolver(network string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(addrDNS.String(), "53"))
	}}
}

// fetch returns the status and the body of the response.
func fetch(t *testing.T, client *http.Client, req *http.Request) (int, string) {
	t.Helper()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func newRequest(t *testing.T, method, url, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// waitEvent waits for an event in the log that matches. An event may be logged
// shortly after the client has disconnected.
func waitEvent(t *testing.T, state, what string, match func(event) bool) event {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, e := range readLog(t, state) {
			if match(e) {
				return e
			}
		}
	}
	t.Fatalf("missing event in the log: %s", what)
	return event{}
}

func readLog(t *testing.T, state string) []event {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(state, "world.log"))
	if err != nil {
		t.Fatal(err)
	}
	var events []event
	for line := range strings.Lines(string(data)) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("parse the log: %v in %q", err, line)
		}
		events = append(events, e)
	}
	return events
}
