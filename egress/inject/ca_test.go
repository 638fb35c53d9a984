package inject

import (
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"
)

// forge signs a certificate with the key of the CA, which code of this package never
// does for other names.
func forge(t *testing.T, ca *CA, names []string, ips []net.IP) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), DNSNames: names, IPAddresses: ips, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, ca.leafKey.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCAIsConstrained(t *testing.T) {
	ca, err := NewCA([]string{apiHost})
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.CertPEM())
	verify := func(c *x509.Certificate, name string) error {
		_, err := c.Verify(x509.VerifyOptions{Roots: pool, DNSName: name})
		return err
	}
	leaf, err := ca.leaf(apiHost)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(leaf.Leaf, apiHost); err != nil {
		t.Errorf("own host: %v", err)
	}
	if _, err := ca.leaf(otherHost); err == nil {
		t.Error("signed another host")
	}
	if _, err := ca.leaf("sub." + apiHost); err == nil {
		t.Error("signed a subdomain")
	}
	if err := verify(forge(t, ca, []string{apiHost}, nil), apiHost); err != nil {
		t.Errorf("control: %v", err)
	}
	if err := verify(forge(t, ca, []string{otherHost}, nil), otherHost); err == nil {
		t.Error("a certificate for another host is valid")
	}
	if err := verify(forge(t, ca, nil, []net.IP{net.IPv4(127, 0, 0, 1)}), "127.0.0.1"); err == nil {
		t.Error("a certificate for an address is valid")
	}
}

func TestCASurvivesRestart(t *testing.T) {
	ca, err := NewCA([]string{apiHost})
	if err != nil {
		t.Fatal(err)
	}
	data, err := ca.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseCA(data)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := again.leaf(apiHost)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: apiHost}); err != nil {
		t.Error(err)
	}
	other, err := NewCA([]string{apiHost})
	if err != nil {
		t.Fatal(err)
	}
	data, err = other.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	mixed := append(ca.CertPEM(), data[len(other.CertPEM()):]...)
	if _, err := ParseCA(mixed); err == nil {
		t.Error("accepted a key of another authority")
	}
	if _, err := ParseCA(ca.CertPEM()); err == nil {
		t.Error("accepted a certificate without a key")
	}
}
