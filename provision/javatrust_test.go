package provision

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"testing"

	"github.com/pavlo-v-chernykh/keystore-go/v4"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/bot-bottle/bottle/egress/inject"
)

func newCert(t *testing.T) (cert *x509.Certificate, text []byte) {
	t.Helper()
	ca, err := inject.NewCA([]string{"a.test"})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(ca.CertPEM())
	if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return cert, ca.CertPEM()
}

// TestJavaTrust: the authority is added to Java's stores of each form, once, and what was
// in them stays. Another file stays as it is.
func TestJavaTrust(t *testing.T) {
	image, _ := newCert(t)
	ours, text := newCert(t)
	jks := keystore.New()
	if err := jks.SetTrustedCertificateEntry("image", keystore.TrustedCertificateEntry{Certificate: keystore.Certificate{Type: "X.509", Content: image.Raw}}); err != nil {
		t.Fatal(err)
	}
	var jksData bytes.Buffer
	if err := jks.Store(&jksData, []byte(storePassword)); err != nil {
		t.Fatal(err)
	}
	p12 := map[string][]byte{}
	for password, encoder := range map[string]*pkcs12.Encoder{"": pkcs12.Passwordless, storePassword: pkcs12.LegacyRC2, "another": pkcs12.Modern2023} {
		data, err := encoder.EncodeTrustStore([]*x509.Certificate{image}, password)
		if err != nil {
			t.Fatal(err)
		}
		p12[password] = data
	}
	const debian = "/etc/ssl/certs/java/cacerts"
	a, img := testAgent(), Image{Env: []string{"JAVA_HOME=/opt/jdk"}}
	a.Trust = Trust{CA: text}
	got := written(t, append(a.javaFiles(img), a.javaFiles(img)...), map[string]string{
		debian: jksData.String(), "/opt/jdk/lib/security/cacerts": string(p12[""]), "/opt/java/openjdk/lib/security/cacerts": string(p12[storePassword]),
		"/usr/java/default/lib/security/cacerts": string(p12["another"]), "/opt/jdk/jre/lib/security/cacerts": "not a store",
	})
	read := keystore.New(keystore.WithOrderedAliases())
	if err := read.Load(bytes.NewReader([]byte(got[debian])), []byte(storePassword)); err != nil {
		t.Fatal(err)
	}
	var certs []*x509.Certificate
	for _, alias := range read.Aliases() {
		e, err := read.GetTrustedCertificateEntry(alias)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(e.Certificate.Content)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
	check := func(what string, certs []*x509.Certificate) {
		t.Helper()
		if len(certs) != 2 || !slices.ContainsFunc(certs, image.Equal) || !slices.ContainsFunc(certs, ours.Equal) {
			t.Errorf("%s has %d certificates", what, len(certs))
		}
	}
	check("JKS", certs)
	for path, password := range map[string]string{"/opt/jdk/lib/security/cacerts": "", "/opt/java/openjdk/lib/security/cacerts": storePassword} {
		certs, err := pkcs12.DecodeTrustStore([]byte(got[path]), password)
		if err != nil {
			t.Fatal(err)
		}
		check(path, certs)
	}
	if got["/usr/java/default/lib/security/cacerts"] != string(p12["another"]) || got["/opt/jdk/jre/lib/security/cacerts"] != "not a store" {
		t.Error("a store that cannot be read was changed")
	}
}
