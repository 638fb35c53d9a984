package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	// clockSkew is the tolerated difference to a client's clock.
	clockSkew = time.Hour
)

// authority issues certificates for any name. It is safe for concurrent use.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// loadAuthority reads ca.pem and ca.key from the directory. It creates them if
// neither exists.
func loadAuthority(dir string) (*authority, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"))
	if errors.Is(err, fs.ErrNotExist) {
		return createAuthority(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read the certificate authority in %s: %w", dir, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("unsupported certificate authority in %s: the key is a %T, not an ECDSA key", dir, pair.PrivateKey)
	}
	return &authority{cert: pair.Leaf, key: key, leaves: map[string]*tls.Certificate{}}, nil
}

func createAuthority(dir string) (*authority, error) {
	for _, name := range []string{"ca.pem", "ca.key"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("incomplete certificate authority in %s: only %s exists", dir, name)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate the authority's key: %w", err)
	}
	template := certificate(pkix.Name{CommonName: "bottle lab test authority"}, authorityLife)
	template.IsCA = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("create the authority's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse the authority's certificate: %w", err)
	}
	a := &authority{cert: cert, key: key, leaves: map[string]*tls.Certificate{}}
	return a, a.write(dir)
}

// write writes the key first, because a certificate without a key is useless.
func (a *authority) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create the authority's directory: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return fmt.Errorf("encode the authority's key: %w", err)
	}
	block := &pem.Block{Type: "PRIVATE KEY", Bytes: key}
	if err := writeFileAtomic(filepath.Join(dir, "ca.key"), pem.EncodeToMemory(block), 0o600); err != nil {
		return err
	}
	block = &pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}
	return writeFileAtomic(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(block), 0o644)
}

func certificate(subject pkix.Name, life time.Duration) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		// CreateCertificate generates a random serial number.
		Subject:               subject,
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(life),
		BasicConstraintsValid: true,
	}
}

// forClient implements tls.Config.GetCertificate: it returns a certificate for the
// server name that the client sent, or for the address that it connected to.
func (a *authority) forClient(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hello.ServerName
	if name == "" {
		host, _, err := net.SplitHostPort(hello.Conn.LocalAddr().String())
		if err != nil {
			return nil, fmt.Errorf("no server name and no local address: %w", err)
		}
		name = host
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if leaf, ok := a.leaves[name]; ok {
		return leaf, nil
	}
	leaf, err := a.issue(name)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", name, err)
	}
	a.leaves[name] = leaf
	return leaf, nil
}

func (a *authority) issue(name string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificate(pkix.Name{CommonName: name}, leafLife)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}, nil
}

// writeFileAtomic writes the file under a temporary name and renames it.
func writeFileAtomic(path string, data []byte, mode fs.FileMode) error {
	partial := path + ".partial"
	if err := os.WriteFile(partial, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(partial, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
