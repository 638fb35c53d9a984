package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/bytesearch"
)

// planted is a value that the search has to find.
type planted struct{ place, form string } // place begins so

// control puts a value of its own into each kind of place, in each kind of form,
// and has the search find them all.
func control(t *testing.T, bottle string) {
	s := bytesearch.New(t)
	var want []planted
	made := 0
	// plant makes a value, and returns it in a form.
	plant := func(form string, places ...string) string {
		made++
		name, value := fmt.Sprintf("plant %d", made), "p-"+rand.Text()+"-'=/+ é"
		if form == "identifier" { // it has nothing to encode
			value = "p-" + rand.Text()
		}
		s.Add(name, value)
		for _, p := range places {
			want = append(want, planted{p, name})
		}
		switch form {
		case "hex":
			return hex.EncodeToString([]byte(value))
		case "URL":
			return url.QueryEscape(value)
		case "base64 at 0", "base64 at 1", "base64 at 2":
			return base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", int(form[10]-'0')) + value + "more"))
		}
		return value
	}

	process := exec.Command("sh", "-c", "echo ready; cat >&2", "argument="+plant("raw", "argv of "))
	process.Env = append(os.Environ(), "PLANTED="+plant("hex", "environ of "))
	begin(t, process, "")

	run := "/run/bottle/" + os.Getenv("CONTAINERD_NAMESPACE") + "/" + bottle
	for i, dir := range []string{
		filepath.Join(os.Getenv("LAB_DISK"), "containerd"), "/run/lab/containerd", run, "/var/lib/bottle", "/run",
		filepath.Join(os.Getenv("LAB_STATE"), "log"), "/tmp", "/var/tmp", "/dev/shm",
	} {
		file := filepath.Join(dir, "planted-by-a-test")
		form := []string{"raw", "base64 at 0", "base64 at 1", "base64 at 2", "hex", "URL"}[i%6]
		// The value is split between two reads.
		text := strings.Repeat(".", 1<<20-5) + plant(form, file) + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(file) })
	}

	const image = "docker.io/library/claude-bottle:latest"
	database := filepath.Join(os.Getenv("LAB_DISK"), "containerd", "io.containerd.metadata.v1.bolt")
	ctr(t, "containers", "create", "--env", "PLANTED="+plant("raw", "ctr containers info planted", database), image, "planted", "true")
	t.Cleanup(func() { ctr(t, "containers", "rm", "planted") })
	id := plant("identifier", "ctr tasks ls", "ctr containers ls")
	newUser(t).start(id)
	importLayer(t, plant("raw", filepath.Join(os.Getenv("LAB_DISK"), "containerd", "io.containerd.content.v1.content/blobs/sha256")))

	// Short-lived processes, such as those of a launch, are found too.
	passing := exec.Command("sh", "-c", "sleep 0.3; true", plant("raw", "argv of "))
	terminal := plant("raw", "terminal")
	stop := s.Sample()
	if err := passing.Run(); err != nil {
		t.Fatal(err)
	}
	found, _ := stop()
	found = append(found, s.Everywhere(map[string]string{"terminal": terminal})...)
	for _, w := range want {
		there := false
		for _, f := range found {
			there = there || strings.HasPrefix(f.Place, w.place) && strings.HasPrefix(f.Form, w.form+", ")
		}
		if !there {
			t.Errorf("not found where it was put: %s in %s", w.form, w.place)
		}
	}
	if made < 15 || len(found) < len(want) {
		t.Errorf("%d planted, %d places, %d found", made, len(want), len(found))
	}
}

// importLayer makes an image with a text in a file of its one layer, which is
// compressed.
func importLayer(t *testing.T, text string) {
	t.Helper()
	const ref = "docker.io/library/e2e-planted:latest"
	layer := &bytes.Buffer{}
	z := gzip.NewWriter(layer)
	writeTar(t, z, map[string][]byte{"etc/planted": []byte(text)})
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	type object map[string]any
	blob := func(kind string, data []byte) object {
		digest := fmt.Sprintf("%x", sha256.Sum256(data))
		files["blobs/sha256/"+digest] = data
		return object{"mediaType": kind, "digest": "sha256:" + digest, "size": len(data)}
	}
	encode := func(v object) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	const oci = "application/vnd.oci.image."
	manifest := blob(oci+"manifest.v1+json", encode(object{
		"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
		"config": blob(oci+"config.v1+json", encode(object{"architecture": "amd64", "os": "linux", "rootfs": object{"type": "layers"}})),
		"layers": []object{blob(oci+"layer.v1.tar+gzip", layer.Bytes())},
	}))
	manifest["annotations"] = object{"io.containerd.image.name": ref}
	files["index.json"] = encode(object{"schemaVersion": 2, "manifests": []object{manifest}})
	archive, err := os.Create(filepath.Join(t.TempDir(), "image.tar"))
	if err != nil {
		t.Fatal(err)
	}
	writeTar(t, archive, files)
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	ctr(t, "images", "import", "--no-unpack", "--all-platforms", archive.Name())
	t.Cleanup(func() { ctr(t, "images", "rm", "--sync", ref) })
}

func writeTar(t *testing.T, w interface{ Write([]byte) (int, error) }, files map[string][]byte) {
	t.Helper()
	out := tar.NewWriter(w)
	for name, data := range files {
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
