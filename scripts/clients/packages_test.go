package clients

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"
)

// Name and version of every package, and the text that it prints.
const (
	name    = "bottle-demo"
	version = "1.0.0"
	says    = "fetched through the proxy"
)

const (
	octets   = "application/octet-stream"
	plain    = "text/plain; charset=utf-8"
	jsonKind = "application/json"
	html     = "text/html; charset=utf-8"
)

// packages is a small registry of every kind, at a URL.
func packages(t *testing.T, base string) files {
	f := files{
		"/":            {plain, []byte(says + "\n")},
		"/page.html":   {html, []byte("<!doctype html><title>page</title><p>" + says)},
		"/api/v3/user": {jsonKind, []byte(`{"login": "` + says + `"}`)},
	}
	for _, add := range []func(*testing.T, files, string){addNPM, addPyPI, addCargo, addGo, addMaven, addDebian} {
		add(t, f, base)
	}
	return f
}

type entry struct{ name, text string }

func tgz(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, e := range entries {
		must(t, w.WriteHeader(&tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.text)), Typeflag: tar.TypeReg}))
		_, err := w.Write([]byte(e.text))
		must(t, err)
	}
	must(t, w.Close())
	must(t, z.Close())
	return buf.Bytes()
}

func zipped(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, e := range entries {
		one, err := w.Create(e.name)
		must(t, err)
		_, err = one.Write([]byte(e.text))
		must(t, err)
	}
	must(t, w.Close())
	return buf.Bytes()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// addNPM: https://github.com/npm/registry/blob/main/docs/responses/package-metadata.md
func addNPM(t *testing.T, f files, base string) {
	tarball := tgz(t,
		entry{"package/package.json", `{"name": "` + name + `", "version": "` + version + `", "main": "index.js"}`},
		entry{"package/index.js", `module.exports = "` + says + `";`},
	)
	sum, short := sha512.Sum512(tarball), sha1.Sum(tarball)
	path := "/npm/" + name + "/-/" + name + "-" + version + ".tgz"
	data, err := json.Marshal(map[string]any{
		"name": name, "dist-tags": map[string]string{"latest": version},
		"time": map[string]string{version: "2020-01-01T00:00:00.000Z", "created": "2020-01-01T00:00:00.000Z", "modified": "2020-01-01T00:00:00.000Z"},
		"versions": map[string]any{version: map[string]any{
			"name": name, "version": version, "main": "index.js",
			"dist": map[string]string{
				"tarball": base + path, "shasum": fmt.Sprintf("%x", short),
				"integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:]),
			},
		}},
	})
	must(t, err)
	f["/npm/"+name], f[path] = file{jsonKind, data}, file{octets, tarball}
}

// addPyPI: PEP 503 and PEP 427.
func addPyPI(t *testing.T, f files, _ string) {
	const module, wheel = "bottle_demo", "bottle_demo-1.0.0-py3-none-any.whl"
	info := module + "-" + version + ".dist-info/"
	data := zipped(t,
		entry{module + ".py", `says = "` + says + `"` + "\n"},
		entry{info + "METADATA", "Metadata-Version: 2.1\nName: " + name + "\nVersion: " + version + "\n"},
		entry{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		entry{info + "RECORD", module + ".py,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n"},
	)
	link := fmt.Sprintf(`<!doctype html><a href="../../files/%s#sha256=%x">%[1]s</a>`, wheel, sha256.Sum256(data))
	f["/pypi/simple/"+name+"/"], f["/pypi/files/"+wheel] = file{html, []byte(link)}, file{octets, data}
}

// addCargo: https://doc.rust-lang.org/cargo/reference/registry-index.html
func addCargo(t *testing.T, f files, base string) {
	dir := name + "-" + version + "/"
	crate := tgz(t,
		entry{dir + "Cargo.toml", "[package]\nname = \"" + name + "\"\nversion = \"" + version + "\"\nedition = \"2021\"\n"},
		entry{dir + "src/lib.rs", "pub const SAYS: &str = \"" + says + "\";\n"},
	)
	index := fmt.Sprintf(`{"name":%q,"vers":%q,"deps":[],"cksum":"%x","features":{},"yanked":false}`+"\n", name, version, sha256.Sum256(crate))
	f["/cargo/config.json"] = file{jsonKind, []byte(`{"dl": "` + base + `/cargo/dl/{crate}-{version}.crate"}`)}
	f["/cargo/bo/tt/"+name] = file{plain, []byte(index)}
	f["/cargo/dl/"+name+"-"+version+".crate"] = file{octets, crate}
}

// addGo: https://go.dev/ref/mod#goproxy-protocol
func addGo(t *testing.T, f files, _ string) {
	const module, at = "example.com/demo", "/go/example.com/demo/@v/"
	mod := "module " + module + "\n\ngo 1.19\n"
	root := module + "@v" + version + "/"
	f[at+"list"] = file{plain, []byte("v" + version + "\n")}
	f[at+"v"+version+".info"] = file{jsonKind, []byte(`{"Version": "v` + version + `", "Time": "2020-01-01T00:00:00Z"}`)}
	f[at+"v"+version+".mod"] = file{plain, []byte(mod)}
	f[at+"v"+version+".zip"] = file{octets, zipped(t,
		entry{root + "go.mod", mod}, entry{root + "demo.go", "package demo\n\nconst Says = \"" + says + "\"\n"},
	)}
}

// addMaven: https://maven.apache.org/repository/layout.html
func addMaven(_ *testing.T, f files, _ string) {
	pom := `<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>` +
		`<groupId>test.bottle</groupId><artifactId>` + name + `</artifactId><version>` + version + `</version>` +
		`<packaging>pom</packaging><description>` + says + `</description></project>`
	at := "/maven/test/bottle/" + name + "/" + version + "/" + name + "-" + version + ".pom"
	f[at] = file{"text/xml", []byte(pom)}
	f[at+".sha1"] = file{plain, fmt.Appendf(nil, "%x", sha1.Sum([]byte(pom)))}
}

// addDebian is a flat repository: https://wiki.debian.org/DebianRepository/Format
func addDebian(t *testing.T, f files, _ string) {
	control := tgz(t, entry{"./control", "Package: " + name + "\nVersion: " + version + "\nArchitecture: all\nMaintainer: test <test@example.test>\nDescription: test\n"})
	deb := ar("debian-binary", []byte("2.0\n"), "control.tar.gz", control, "data.tar.gz", tgz(t, entry{"./usr/share/" + name, says + "\n"}))
	list := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: test <test@example.test>\nFilename: ./%[1]s.deb\nSize: %[3]d\nMD5sum: %[4]x\nSHA256: %[5]x\nDescription: test\n\n",
		name, version, len(deb), md5.Sum(deb), sha256.Sum256(deb))
	f["/debian/./Packages"], f["/debian/Packages"] = file{plain, []byte(list)}, file{plain, []byte(list)}
	f["/debian/./"+name+".deb"], f["/debian/"+name+".deb"] = file{octets, deb}, file{octets, deb}
}

// ar is an archive of names and contents (ar(5)).
func ar(parts ...any) []byte {
	out := []byte("!<arch>\n")
	for i := 0; i < len(parts); i += 2 {
		data := parts[i+1].([]byte)
		out = fmt.Appendf(out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", parts[i], 0, 0, 0, "100644", len(data))
		out = append(out, data...)
		if len(data)%2 == 1 {
			out = append(out, '\n')
		}
	}
	return out
}
