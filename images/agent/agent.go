// Package agent generates the Dockerfiles of the default agent images. It does not
// build them.
package agent

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/template"

	"github.com/bot-bottle/bottle/agents"
)

//go:embed Dockerfile.tmpl
var dockerfileText string

//go:embed npm_package.sh
var npmPackage string

var dockerfile = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("Dockerfile").Parse(dockerfileText))
})

// Label marks an image built from the Dockerfile and holds its Hash at that time. An
// image without it belongs to the user.
const Label = "bottle.agent-image"

// User of the images, as set in the Dockerfile.
const User = "1000:1000"

// Dockerfile returns the Dockerfile of a kind that has an image.
func Dockerfile(k *agents.Kind) []byte {
	command := make([]string, len(k.Command))
	for i, arg := range k.Command {
		command[i] = strconv.Quote(arg)
	}
	var out bytes.Buffer
	err := dockerfile().Execute(&out, struct {
		*agents.Kind
		Script  string
		Env     []string
		Command string
	}{k, Script(k), assignments(k), strings.Join(command, ", ")})
	if err != nil {
		panic(err) // the template and the kinds are part of the program
	}
	return out.Bytes()
}

// assignments returns the variables of the image, NAME=VALUE, sorted.
func assignments(k *agents.Kind) []string {
	var out []string
	for _, env := range []map[string]string{k.Env, k.Image.Env} {
		for name, value := range env {
			out = append(out, name+"="+strconv.Quote(value))
		}
	}
	slices.Sort(out)
	return out
}

// Script returns the bash script that places the kind's files below /out. It needs npm,
// the variables of the kind's Image.Args, and arch: amd64 or arm64.
func Script(k *agents.Kind) string {
	return npmPackage + `case $arch in
  amd64) cpu=x64 ;;
  arm64) cpu=arm64 ;;
  *) echo "` + k.Title + ` is not available for $arch" >&2; exit 1 ;;
esac
` + k.Image.Install
}

// Hash identifies the Dockerfile's content together with its build arguments.
func Hash(k *agents.Kind, args map[string]string) string {
	h := sha256.New()
	h.Write(Dockerfile(k)) // a hash's Write never fails
	for _, name := range slices.Sorted(maps.Keys(args)) {
		_, _ = fmt.Fprintf(h, "\x00%s=%s", name, args[name])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
