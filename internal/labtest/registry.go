package labtest

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Registry is a running image registry (the distribution project's) for one
// test or benchmark.
type Registry struct {
	Host string // ADDRESS:PORT
	// Storage is the directory of its blobs.
	Storage string
	// CA is the file of its certificate authority; empty for a plain registry.
	CA string
	// User and Password are its credentials; empty for a plain registry.
	User, Password string
}

// registryStartTimeout bounds the wait for a registry to listen.
const registryStartTimeout = 20 * time.Second

// PlainRegistry starts a registry on loopback that serves HTTP without
// authentication.
func PlainRegistry(t testing.TB) *Registry { return PlainRegistryAt(t, "127.0.0.1") }

// PlainRegistryAt starts a plain registry at another address of the test host.
func PlainRegistryAt(t testing.TB, address string) *Registry {
	return startRegistry(t, &Registry{Host: net.JoinHostPort(address, "0")})
}

// PrivateRegistry starts a registry on loopback that serves HTTPS with an
// untrusted certificate and requires a password.
func PrivateRegistry(t testing.TB) *Registry {
	return startRegistry(t, &Registry{Host: "127.0.0.1:0", CA: "ca.pem", User: "reader", Password: "correct horse"})
}

func startRegistry(t testing.TB, r *Registry) *Registry {
	t.Helper()
	stop, err := r.start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return r
}

// ServeRegistry is PlainRegistry for programs other than tests. It stores the
// registry's files in dir; stop ends the registry.
func ServeRegistry(dir string) (r *Registry, stop func(), err error) {
	r = &Registry{Host: "127.0.0.1:0"}
	stop, err = r.start(dir)
	return r, stop, err
}

func (r *Registry) start(dir string) (stop func(), err error) {
	r.Storage = filepath.Join(dir, "storage")
	conf := map[string]any{
		"version": 0.1,
		"log":     map[string]any{"level": "info", "formatter": "json", "accesslog": map[string]any{"disabled": true}},
		"storage": map[string]any{"filesystem": map[string]any{"rootdirectory": r.Storage}, "delete": map[string]any{"enabled": true}},
	}
	web := map[string]any{"addr": r.Host}
	if r.CA != "" {
		r.CA = filepath.Join(dir, r.CA)
		key := filepath.Join(dir, "key.pem")
		if err := selfSigned(r.CA, key); err != nil {
			return nil, err
		}
		hash, err := bcrypt.GenerateFromPassword([]byte(r.Password), bcrypt.MinCost)
		if err != nil {
			return nil, err
		}
		users := filepath.Join(dir, "users")
		if err := os.WriteFile(users, []byte(r.User+":"+string(hash)+"\n"), 0o600); err != nil {
			return nil, err
		}
		web["tls"] = map[string]any{"certificate": r.CA, "key": key}
		conf["auth"] = map[string]any{"htpasswd": map[string]any{"realm": "lab", "path": users}}
	}
	conf["http"] = web
	data, err := json.Marshal(conf) // JSON is a subset of YAML
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "registry.yml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return nil, err
	}
	r.Host, stop, err = runRegistry(file)
	return stop, err
}

// runRegistry starts the program and returns the address that it listens on.
func runRegistry(file string) (host string, stop func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "registry", "serve", file)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	log, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return "", nil, fmt.Errorf("start registry: %w", err)
	}
	listening := make(chan string, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		readRegistryLog(log, listening)
		_ = cmd.Wait() // killed by stop
	}()
	stop = func() {
		cancel()
		<-ended
	}
	select {
	case host = <-listening:
		if host != "" {
			return host, stop, nil
		}
		err = errors.New("registry exited before it listened")
	case <-time.After(registryStartTimeout):
		err = fmt.Errorf("registry did not listen within %s", registryStartTimeout)
	}
	stop()
	return "", nil, err
}

func readRegistryLog(log io.Reader, listening chan<- string) {
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct {
			Msg string `json:"msg"`
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			continue
		}
		if address, ok := strings.CutPrefix(line.Msg, "listening on "); ok {
			host, _, _ := strings.Cut(address, ",")
			select {
			case listening <- host:
			default:
			}
		}
	}
	close(listening)
	_, _ = io.Copy(io.Discard, log)
}

// HostsDir creates a hosts directory (containerd's hosts.toml files) that trusts
// the registry's certificate.
func (r *Registry) HostsDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	hostDir := filepath.Join(dir, r.Host)
	if err := os.Mkdir(hostDir, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(hostDir, "hosts.toml"), fmt.Appendf(nil, "server = %q\n[host.%q]\n  ca = %q\n", "https://"+r.Host, "https://"+r.Host, r.CA))
	return dir
}

func writeFile(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Certificate writes a self-signed certificate for 127.0.0.1 to a file, and its key
// next to it. It returns both files.
func Certificate(t testing.TB, certFile string) (cert, key string) {
	t.Helper()
	key = certFile + ".key"
	if err := selfSigned(certFile, key); err != nil {
		t.Fatal(err)
	}
	return certFile, key
}

// selfSigned writes a self-signed certificate for 127.0.0.1 and its key.
func selfSigned(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "lab registry"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, kind string
		data       []byte
	}{{certFile, "CERTIFICATE", cert}, {keyFile, "PRIVATE KEY", der}} {
		if err := os.WriteFile(f.name, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.data}), 0o600); err != nil {
			return err
		}
	}
	return nil
}
