package clients

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/netns"
)

// The server of packages listens at the address of a host of the test host's
// world, on ports of its own. Each package manager finds one package there.
const (
	host       = "allowed.test"
	address    = "198.51.101.10"
	securePort = "8443"
	plainPort  = "8080"
	secureURL  = "https://" + host + ":" + securePort
	plainURL   = "http://" + host + ":" + plainPort
)

// serve starts the server of packages in the world's network namespace.
func serve(t *testing.T) {
	t.Helper()
	handler := packages(t, secureURL)
	listen(t, address+":"+securePort, handler, &tls.Config{Certificates: []tls.Certificate{certificate(t, host)}})
	listen(t, address+":"+plainPort, handler, nil)
}

// listen serves at an address of the world until the test ends.
func listen(t *testing.T, address string, handler http.Handler, config *tls.Config) {
	t.Helper()
	var l net.Listener
	err := netns.Do(os.Getenv("LAB_WORLD_NETNS"), func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, TLSConfig: config}
	done := make(chan error, 1)
	go func() {
		if config == nil {
			done <- server.Serve(l)
		} else {
			done <- server.ServeTLS(l, "", "")
		}
	}()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// certificate is one for a host, issued by the world's authority.
func certificate(t *testing.T, host string) tls.Certificate {
	t.Helper()
	ca := os.Getenv("LAB_CA")
	authority, err := tls.LoadX509KeyPair(ca, strings.TrimSuffix(ca, filepath.Ext(ca))+".key")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority.Leaf, key.Public(), authority.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// files serves fixed contents by path; packages fills it.
type files map[string]file

type file struct {
	kind string // of content
	data []byte
}

func (f files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	one, ok := f[r.URL.Path]
	if !ok {
		// Scoped names are escaped in npm's paths.
		one, ok = f[r.URL.EscapedPath()]
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", one.kind)
	w.Header().Set("Content-Length", fmt.Sprint(len(one.data)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(one.data) // an error is the client's end of the connection
	}
}
