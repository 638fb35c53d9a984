package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/bot-bottle/bottle/egress/inject"
	secrets "github.com/bot-bottle/bottle/internal/secret"
)

const injectValue = "ghp_0123456789abcdefghijABCDEFGHIJ012345"

// injectScene is a proxy with a secret for example.com, whose server answers with the
// credential's last characters.
type injectScene struct {
	*testProxy
	placeholder string
	port        int
	client      *http.Client
	config      Config
	closing     atomic.Bool // the server closes its connections
}

func newInjectScene(t *testing.T) *injectScene {
	t.Helper()
	s := prepareInjectScene(t)
	s.testProxy = startProxy(t, s.config)
	s.client.Transport.(*http.Transport).Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: s.addr})
	return s
}

// prepareInjectScene does everything but starting the proxy.
func prepareInjectScene(t *testing.T) *injectScene {
	t.Helper()
	s := &injectScene{}
	upstream := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.closing.Load() {
			w.Header().Set("Connection", "close")
		}
		credential := r.Header.Get("Authorization")
		_, _ = io.WriteString(w, credential[max(0, len(credential)-6):]) // too short to be an echo
	}))
	t.Cleanup(upstream.Close)
	port := upstream.Listener.Addr().(*net.TCPAddr).Port
	s.placeholder, s.port = inject.Placeholder(injectValue), port
	token := []inject.Secret{{
		Name: "TOKEN", Value: secrets.New(injectValue), Placeholder: s.placeholder, Hosts: []string{s.target("example.com")},
	}}
	ca, err := inject.NewCA([]string{"example.com"})
	if err != nil {
		t.Fatal(err)
	}
	data, err := inject.Encode(ca, token)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := &Inject{Secrets: filepath.Join(dir, "secrets.json"), Roots: filepath.Join(dir, "roots.pem")}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: upstream.Certificate().Raw})
	for name, data := range map[string][]byte{files.Secrets: data, files.Roots: root} {
		if err := os.WriteFile(name, data, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	s.config = Config{
		Entries: Entries{Allow: []string{s.target("example.com"), s.target("other.example.com")}, AllowPrivate: []string{"127.0.0.0/8"}},
		Inject:  files,
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.CertPEM())
	roots.AddCert(upstream.Certificate())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	s.client = &http.Client{Transport: transport}
	return s
}

func (s *injectScene) target(host string) string { return net.JoinHostPort(host, strconv.Itoa(s.port)) }

func (s *injectScene) get(t *testing.T, host string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+s.target(host)+"/path", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.placeholder)
	res, err := s.client.Do(r)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(res.StatusCode, " ", string(body), " ", res.TLS.PeerCertificates[0].Issuer.CommonName)
}

// TestInjectedTunnel: a tunnel to a host with a secret is terminated, and a request in it
// has the secret and a line in the log; other tunnels are not.
func TestInjectedTunnel(t *testing.T) {
	s := newInjectScene(t)
	if got := s.get(t, "example.com"); !strings.HasPrefix(got, "200 012345 bottle ") {
		t.Errorf("got %s", got)
	}
	if got := s.get(t, "other.example.com"); strings.HasPrefix(got, "200 012345") || strings.Contains(got, " bottle ") || !strings.HasPrefix(got, "200 ") {
		t.Errorf("a host without a secret: got %s", got)
	}
	e := s.log.waitEvent(t, EventRequest)
	want := "https://" + s.target("example.com") + "/path"
	if e.URL != want || e.Status != 200 || e.Method != http.MethodGet || e.Bytes != 6 || !slices.Equal(e.Secrets, []string{"TOKEN"}) || e.Verdict() != VerdictSent {
		t.Errorf("logged %+v", e)
	}
	end := s.log.wait(t, "end", func(e Entry) bool { return e.Event == EventTunnelClose && e.Target == s.target("example.com") })
	if end.Bytes != 0 {
		t.Errorf("bytes are counted twice: %+v", end)
	}
}

// TestInjectedLater: a proxy that was started without secrets, and allows nothing, gets
// both by a reload. No request is tunneled past the injector in between.
func TestInjectedLater(t *testing.T) {
	s := newInjectScene(t)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	later := s.config
	s.testProxy = startProxy(t, Config{})
	s.client.Transport.(*http.Transport).Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: s.addr})
	if got := s.get(t, "example.com"); !strings.Contains(got, "Forbidden") {
		t.Errorf("before: %s", got)
	}
	broken := later
	broken.Inject = &Inject{Secrets: later.Inject.Roots, Roots: later.Inject.Roots}
	if err := s.Reload(testConfig(broken)); err == nil {
		t.Error("an invalid file of secrets is accepted")
	}
	if got := s.get(t, "example.com"); !strings.Contains(got, "Forbidden") {
		t.Errorf("after an invalid file: %s", got)
	}
	if err := s.Reload(testConfig(later)); err != nil {
		t.Fatal(err)
	}
	if got := s.get(t, "example.com"); !strings.HasPrefix(got, "200 012345 bottle ") {
		t.Errorf("after the reload: %s", got)
	}
}

// TestInjectedReload: a request in a tunnel that is open is refused if its host is no
// longer allowed, once its connection is used up.
func TestInjectedReload(t *testing.T) {
	s := newInjectScene(t)
	first := make(chan net.Conn, 1)
	ctx := context.WithValue(t.Context(), firstConnKey{}, first)
	conn, err := s.dialInjected(ctx, "tcp", s.target("example.com"))
	if err != nil {
		t.Fatal(err)
	}
	first <- conn
	denied := testConfig(s.config)
	denied.Deny = []string{"example.com"}
	if err := s.Reload(denied); err != nil {
		t.Fatal(err)
	}
	again, err := s.dialInjected(ctx, "tcp", s.target("example.com"))
	if err != nil || again != conn {
		t.Errorf("the connection of the CONNECT is not used: %v", err)
	}
	if conn, err := s.dialInjected(ctx, "tcp", s.target("example.com")); err == nil || conn != nil || !strings.Contains(err.Error(), "denied by the entry") {
		t.Errorf("got %v, %v", conn, err)
	}
	_ = conn.Close()
	if got := s.get(t, "example.com"); !strings.Contains(got, "Forbidden") {
		t.Errorf("got %s", got)
	}
}

// TestInjectedDeny: a request in an open tunnel, whose server has closed the connection, is
// refused and logged like others to a denied host.
func TestInjectedDeny(t *testing.T) {
	s := newInjectScene(t)
	s.client.Transport.(*http.Transport).DisableKeepAlives = false
	s.closing.Store(true)
	if got := s.get(t, "example.com"); !strings.HasPrefix(got, "200 ") {
		t.Fatalf("got %s", got)
	}
	denied := testConfig(s.config)
	denied.Deny = []string{"example.com"}
	if err := s.Reload(denied); err != nil {
		t.Fatal(err)
	}
	if got := s.get(t, "example.com"); !strings.HasPrefix(got, "502 bottle: cannot use "+s.target("example.com")+": denied by the entry") {
		t.Errorf("got %s", got)
	}
	e := s.log.waitEvent(t, EventBlocked)
	if e.Scanner != "denylist" || e.Target != s.target("example.com") || !e.Denied() {
		t.Errorf("logged %+v", e)
	}
	s.client.CloseIdleConnections()
}

// TestInjectFiles: a proxy does not start without its secrets.
func TestInjectFiles(t *testing.T) {
	s := newInjectScene(t)
	for _, c := range []struct{ file, text, want string }{
		{s.config.Inject.Secrets, "{}", "parse secrets: invalid certificate authority"},
		{s.config.Inject.Secrets, `{"secrets": "hunter2`, "parse secrets: invalid JSON"},
		{s.config.Inject.Roots, "none", "no certificate in"},
	} {
		old, err := os.ReadFile(c.file)
		if err != nil {
			t.Fatal(err)
		}
		replace := func(text []byte) {
			if err := os.Remove(c.file); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(c.file, text, 0o400); err != nil {
				t.Fatal(err)
			}
		}
		replace([]byte(c.text))
		if _, err := New(s.config, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v, want %q", err, c.want)
		}
		replace(old)
	}
}

// TestInjectedValueChanges: after a reload, requests get the new value of a secret. An
// invalid file changes nothing.
func TestInjectedValueChanges(t *testing.T) {
	s := newInjectScene(t)
	s.client.Transport.(*http.Transport).DisableKeepAlives = false // one tunnel
	defer s.client.CloseIdleConnections()
	change := func(old, now string) {
		t.Helper()
		data, err := os.ReadFile(s.config.Inject.Secrets)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(s.config.Inject.Secrets); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.config.Inject.Secrets, []byte(strings.ReplaceAll(string(data), old, now)), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"200 012345 ", "200 543210 "} {
		if got := s.get(t, "example.com"); !strings.HasPrefix(got, want) {
			t.Errorf("got %s, want %s", got, want)
		}
		change("012345\"", "543210\"")
		if err := s.Reload(testConfig(s.config)); err != nil {
			t.Fatal(err)
		}
	}
	change("543210\"", "\"hunter2")
	if err := s.Reload(testConfig(s.config)); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("an invalid file: %v", err)
	}
	if got := s.get(t, "example.com"); !strings.HasPrefix(got, "200 543210 ") {
		t.Errorf("after an invalid file: %s", got)
	}
}
