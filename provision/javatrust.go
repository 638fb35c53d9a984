package provision

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"slices"
	"time"

	"github.com/pavlo-v-chernykh/keystore-go/v4"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/bot-bottle/bottle/internal/rootfile"
)

// javaStores are the trust stores of Java that images have outside JAVA_HOME: those of
// distributions, and of common images. A link leads to the same file as another path.
var javaStores = []string{
	"/etc/ssl/certs/java/cacerts", // Debian, Alpine
	"/etc/pki/ca-trust/extracted/java/cacerts",
	"/usr/lib/jvm/default-java/lib/security/cacerts",
	"/usr/lib/jvm/default-jvm/lib/security/cacerts",
	"/usr/lib/jvm/default/lib/security/cacerts",
	"/opt/java/openjdk/lib/security/cacerts",
	"/usr/java/default/lib/security/cacerts",
}

// javaHomes are the trust stores in a directory of Java; the second is that of Java 8.
var javaHomes = []string{"/lib/security/cacerts", "/jre/lib/security/cacerts"}

// storePassword protects nothing: it is that of every JDK's trust store.
const storePassword = "changeit"

// javaFiles add the authority to the trust stores of Java in the image.
func (a Agent) javaFiles(img Image) []rootfile.File {
	paths := slices.Clone(javaStores)
	if home, ok := a.setting(img, "JAVA_HOME"); ok {
		for _, p := range javaHomes {
			paths = append(paths, home+p)
		}
	}
	var files []rootfile.File
	for _, path := range paths {
		files = append(files, rootfile.File{Path: path, Mode: 0o644, Root: true, Existing: true, Edit: func(old []byte) ([]byte, error) {
			added, err := withJavaCA(old, a.Trust.CA)
			if err != nil {
				// A store with another password or of another kind stays as it is: Java then
				// refuses the authority, which the user sees, and nothing else is worse.
				return old, nil //nolint:nilerr // see above
			}
			return added, nil
		}})
	}
	return files
}

// jksMagic begins a Java keystore. Java reads either form, whatever a file's name says.
var jksMagic = []byte{0xfe, 0xed, 0xfe, 0xed}

// withJavaCA adds a certificate to a trust store, unless it is there already.
func withJavaCA(store, ca []byte) ([]byte, error) {
	block, _ := pem.Decode(ca)
	if block == nil {
		return nil, errors.New("no certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(store, jksMagic) {
		return withJKS(store, cert)
	}
	// The JDK's own store has no password since Java 18.
	for _, password := range []string{"", storePassword} {
		certs, err := pkcs12.DecodeTrustStore(store, password)
		switch {
		case err != nil:
			continue
		case slices.ContainsFunc(certs, cert.Equal):
			return store, nil
		}
		encoder := pkcs12.Modern2023
		if password == "" {
			encoder = pkcs12.Passwordless
		}
		return encoder.EncodeTrustStore(append(certs, cert), password)
	}
	return nil, errors.New("unknown form or password of a trust store")
}

func withJKS(store []byte, cert *x509.Certificate) ([]byte, error) {
	ks := keystore.New(keystore.WithOrderedAliases())
	if err := ks.Load(bytes.NewReader(store), []byte(storePassword)); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(cert.Raw)
	alias := "bottle-" + hex.EncodeToString(sum[:8])
	if ks.IsTrustedCertificateEntry(alias) {
		return store, nil
	}
	err := ks.SetTrustedCertificateEntry(alias, keystore.TrustedCertificateEntry{
		CreationTime: time.Now(), Certificate: keystore.Certificate{Type: "X.509", Content: cert.Raw},
	})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = ks.Store(&out, []byte(storePassword))
	return out.Bytes(), err
}
