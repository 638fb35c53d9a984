package inject

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// A bottle may be kept for long, and its CA has no use without its key.
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 7 * 24 * time.Hour
	// clockSkew is how far the clock of a sandbox may be behind.
	clockSkew = time.Hour
)

// CA signs certificates for the hosts of one bottle. It is safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// leafKey is the key of all leaf certificates, which this process uses only.
	leafKey *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// NewCA creates a CA for DNS names.
func NewCA(hosts []string) (*CA, error) {
	if len(hosts) == 0 {
		return nil, errors.New("missing hosts of the certificate authority")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		// The serial number distinguishes the CAs of several bottles in one store.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("bottle %x", serial.Bytes()[:4])},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// Names of a kind without a constraint would be unconstrained (RFC 5280,
		// section 4.2.1.10), so addresses are excluded.
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         hosts,
		ExcludedIPRanges: []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("create certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return newCA(cert, key)
}

func newCA(cert *x509.Certificate, key *ecdsa.PrivateKey) (*CA, error) {
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert, key: key, leafKey: leafKey, leaves: map[string]*tls.Certificate{}}, nil
}

// PEM types of [CA.Marshal].
const (
	pemCert = "CERTIFICATE"
	pemKey  = "EC PRIVATE KEY"
)

// Marshal returns the certificate and the key as PEM. It may be written to tmpfs,
// mode 0400, and nowhere else.
func (c *CA) Marshal() ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(c.key)
	if err != nil {
		return nil, err
	}
	return append(c.CertPEM(), pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})...), nil
}

// ParseCA returns the CA that [CA.Marshal] wrote.
func ParseCA(data []byte) (*CA, error) {
	certBlock, rest := pem.Decode(data)
	keyBlock, _ := pem.Decode(rest)
	if certBlock == nil || certBlock.Type != pemCert || keyBlock == nil || keyBlock.Type != pemKey {
		return nil, errors.New("invalid certificate authority: expected a certificate and a key in PEM")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate authority: %w", err)
	}
	key, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse key of the certificate authority: %w", err)
	}
	if !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("invalid certificate authority: the key is not the certificate's")
	}
	return newCA(cert, key)
}

// CertPEM returns the certificate, for trust stores.
func (c *CA) CertPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: c.cert.Raw})
}

// hosts returns the names that the CA may sign.
func (c *CA) hosts() []string { return c.cert.PermittedDNSDomains }

// leaf returns a certificate for one of the hosts.
func (c *CA) leaf(host string) (*tls.Certificate, error) {
	if !slices.Contains(c.hosts(), host) {
		return nil, fmt.Errorf("the certificate authority is not for %s", host)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if cert := c.leaves[host]; cert != nil && now.Before(cert.Leaf.NotAfter.Add(-leafLife/2)) {
		return cert, nil
	}
	cert, err := c.sign(host, now)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %s: %w", host, err)
	}
	c.leaves[host] = cert
	return cert, nil
}

func (c *CA) sign(host string, now time.Time) (*tls.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		DNSNames:     []string{host},
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if len(host) <= 64 { // the limit of a common name, RFC 5280 appendix A.1
		template.Subject = pkix.Name{CommonName: host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, c.leafKey.Public(), c.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, bytes.Clone(c.cert.Raw)}, PrivateKey: c.leafKey, Leaf: leaf}, nil
}

// newSerial returns a positive number of 16 random bytes, of at most 20 octets as RFC
// 5280 requires.
func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}
