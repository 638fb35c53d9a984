package buildkit

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const features = `# syntax=docker/dockerfile:1
ARG BASE=bottle-demo:latest
FROM ${BASE} AS tools
USER root
WORKDIR /work
ARG WORD=unset
RUN <<END
set -e
echo "word $WORD" >word
echo second line >>word
END
RUN --mount=type=secret,id=file --mount=type=secret,id=value,target=/value,mode=0444 \
    sha256sum /run/secrets/file /value | cut -c1-64 >sums
RUN --mount=type=cache,id=count,target=/cache echo "$WORD" >>/cache/words && cp /cache/words words
RUN --mount=type=bind,source=given,target=/given cp /given/a a && ! touch /given/b

FROM scratch AS unused
COPY --from=tools /no/such/file /

FROM tools AS dev
RUN echo dev >/dev-only

FROM bottle-demo:latest
COPY --from=tools --chown=1000:1000 /work/ /work/
COPY . /context/
COPY --chmod=0755 <<"END" /script
#!/bin/sh
echo $HOME
END
ENV COLOR=green
LABEL made=here
USER 1000:1000
CMD ["/script"]
`

// TestFeatures builds a Dockerfile that uses many features.
func TestFeatures(t *testing.T) {
	b := newBuilder(t)
	b.write("Dockerfile", features)
	b.write(".dockerignore", "*.log\nignored\n!kept.log\n")
	b.write("given/a", "given")
	b.write("a.log", "x")
	b.write("kept.log", "x")
	b.write("ignored/x", "x")
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("from-a-file"), 0o600))
	req := Request{
		Names: []string{b.ref(), strings.Replace(b.ref(), ":latest", ":2", 1)},
		Args:  map[string]string{"WORD": "one"}, Labels: map[string]string{"given": "label"},
		Secrets: []Secret{{ID: "file", File: secret}, {ID: "value", Value: func() []byte { return []byte("from-a-value") }}},
	}
	first := b.good(req)
	spec, files := b.read(req.Names[1], "work/sums", "work/word", "work/words", "work/a", "context/a.log", "context/kept.log", "context/ignored/x",
		"script", "dev-only", "given/a", "run/secrets/file", "value", "cache/words")
	want := map[string]string{
		"work/sums": hexSum("from-a-file") + hexSum("from-a-value"),
		"work/word": "word one\nsecond line\n", "work/words": "one\n", "work/a": "given", "context/kept.log": "x",
		"script": "#!/bin/sh\necho $HOME\n",
	}
	for p, text := range files {
		if text != want[p] {
			t.Errorf("%s contains %q, want %q", p, text, want[p])
		}
	}
	if len(files) != len(want) {
		t.Errorf("files %q, want %q", files, want)
	}
	c := spec.Config
	if c.User != "1000:1000" || !slices.Contains(c.Env, "COLOR=green") || c.Labels["made"] != "here" || c.Labels["given"] != "label" || !slices.Equal(c.Cmd, []string{"/script"}) {
		t.Errorf("configuration %+v", c)
	}
	if again := b.good(req); again.Digest != first.Digest || again.Executed {
		t.Errorf("the second build produced %s, the first %s", again.Digest, first.Digest)
	}
	if n := strings.Count(b.log.String(), "CACHED"); n < 7 {
		t.Errorf("%d steps are cached:\n%s", n, b.log.String())
	}
	// The cache mount keeps its content between builds; --no-cache empties it.
	req.Args["WORD"] = "two"
	b.good(req)
	if _, files := b.read(b.ref(), "work/words"); files["work/words"] != "one\ntwo\n" {
		t.Errorf("the cache mount contains %q", files["work/words"])
	}
	req.NoCache = true
	b.good(req)
	if _, files := b.read(b.ref(), "work/words"); files["work/words"] != "two\n" {
		t.Errorf("the cache mount contains %q", files["work/words"])
	}
	req.NoCache, req.Target = false, "dev"
	b.good(req)
	if _, files := b.read(b.ref(), "dev-only", "script"); files["dev-only"] != "dev\n" || files["script"] != "" {
		t.Errorf("target dev has %q", files)
	}
	b.notStored("from-a-value")
	b.notStored("from-a-file")
}

func hexSum(text string) string { return fmt.Sprintf("%x\n", sha256.Sum256([]byte(text))) }

// notStored fails if a secret is in the log or the state directory.
func (b *builder) notStored(value string) {
	b.t.Helper()
	if strings.Contains(b.log.String(), value) {
		b.t.Errorf("the log shows %s", value)
	}
	err := filepath.WalkDir(b.cfg.StateDir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		if bytes.Contains(data, []byte(value)) {
			b.t.Errorf("%s contains %s", p, value)
		}
		return err
	})
	must(b.t, err)
}

// TestPlatform builds for another platform, without RUN steps.
func TestPlatform(t *testing.T) {
	b := newBuilder(t)
	b.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")
	b.good(Request{Names: []string{b.ref()}, Platform: "linux/s390x"})
	img, err := b.c.ImageService().Get(b.ctx, b.ref())
	if err != nil {
		t.Fatal(err)
	}
	if img.Target.Digest == "" {
		t.Error("no image")
	}
	b.bad(Request{Names: []string{b.ref()}, Platform: "none/such/thing/at/all"}, "none/such")
}

// TestText builds a Dockerfile given as text, without a context.
func TestText(t *testing.T) {
	b := newBuilder(t)
	ref := b.ref()
	b.good(Request{Names: []string{ref}, Dockerfile: "bottle's own", Text: []byte("FROM bottle-demo:latest\nRUN echo made >/tmp/made\n")})
	if _, files := b.read(ref, "tmp/made"); files["tmp/made"] != "made\n" {
		t.Errorf("%q", files)
	}
}
