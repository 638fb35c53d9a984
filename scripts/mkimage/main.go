// Command mkimage writes an OCI image archive from directories and tar files
// without a daemon or a build. scripts/lab uses it and imports the archives with
// `ctr images import`. The output is reproducible.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
)

const usage = `usage: mkimage --out FILE --ref docker.io/library/NAME:TAG [FLAG]... [-- COMMAND...]

`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	spec, err := parse(args, stdout)
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "mkimage: %v (mkimage --help)\n", err)
		return 2
	}
	spec.notice = func(text string) { _, _ = fmt.Fprintln(stderr, "mkimage:", text) }
	if err := spec.write(); err != nil {
		_, _ = fmt.Fprintln(stderr, "mkimage:", err)
		return 1
	}
	return 0
}

// spec describes the image.
type spec struct {
	out, ref, tag string
	layers        []source
	platform      ocispec.Platform
	config        ocispec.ImageConfig
	// notice reports files that are not in the image.
	notice func(string)
}

// source is a layer's content: a directory or a tar file.
type source struct {
	path string
	dir  bool
}

// sourceFlag appends to the layers, so that the two flags share one order.
type sourceFlag struct {
	layers *[]source
	dir    bool
}

func (f sourceFlag) String() string { return "" }
func (f sourceFlag) Type() string   { return "PATH" }
func (f sourceFlag) Set(path string) error {
	if path == "" {
		return errors.New("empty path")
	}
	*f.layers = append(*f.layers, source{path: path, dir: f.dir})
	return nil
}

func parse(args []string, help io.Writer) (*spec, error) {
	s := &spec{}
	var platform string
	var labels []string
	flags := pflag.NewFlagSet("mkimage", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVar(&s.out, "out", "", "the archive to write")
	flags.StringVar(&s.ref, "ref", "", "the image's full name")
	flags.Var(sourceFlag{&s.layers, true}, "layer-dir", "add a layer with a directory's content; layers are in the order of the flags")
	flags.Var(sourceFlag{&s.layers, false}, "layer-tar", "add a layer from a tar file, optionally gzipped")
	flags.StringVar(&s.config.User, "user", "", "USER or UID:GID that commands run as")
	flags.StringVar(&s.config.WorkingDir, "workdir", "", "working directory of commands")
	flags.StringArrayVar(&s.config.Env, "env", nil, "a variable, NAME=VALUE")
	flags.StringArrayVar(&labels, "label", nil, "a label, NAME=VALUE")
	flags.StringVar(&platform, "platform", "linux/"+runtime.GOARCH, "OS/ARCHITECTURE")
	flags.Usage = func() {
		_, _ = io.WriteString(help, usage+flags.FlagUsages())
	}
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	s.config.Cmd = flags.Args()
	if flags.ArgsLenAtDash() != 0 && flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %s: the command goes after --", flags.Arg(0))
	}
	return s, s.check(platform, labels)
}

func (s *spec) check(platform string, labels []string) error {
	if s.out == "" {
		return errors.New("missing --out")
	}
	if len(s.layers) == 0 {
		return errors.New("missing --layer-dir or --layer-tar")
	}
	for _, e := range s.config.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return fmt.Errorf("invalid --env %s: not NAME=VALUE", e)
		}
	}
	for _, l := range labels {
		name, value, ok := strings.Cut(l, "=")
		if !ok || name == "" {
			return fmt.Errorf("invalid --label %s: not NAME=VALUE", l)
		}
		if s.config.Labels == nil {
			s.config.Labels = map[string]string{}
		}
		s.config.Labels[name] = value
	}
	if err := s.checkPlatform(platform); err != nil {
		return err
	}
	return s.checkRef()
}

func (s *spec) checkPlatform(platform string) error {
	parts := strings.Split(platform, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] != "linux" || parts[1] == "" {
		return fmt.Errorf("invalid --platform %s: not linux/ARCHITECTURE", platform)
	}
	s.platform = ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		s.platform.Variant = parts[2]
	}
	return nil
}

// checkRef requires the full name under which containerd looks images up. An
// image imported with a short name would not be found.
func (s *spec) checkRef() error {
	if s.ref == "" {
		return errors.New("missing --ref")
	}
	named, err := reference.ParseNormalizedNamed(s.ref)
	if err != nil {
		return fmt.Errorf("invalid --ref %q: %w", s.ref, err)
	}
	tagged, ok := reference.TagNameOnly(named).(reference.NamedTagged)
	if !ok || tagged.String() != s.ref {
		return fmt.Errorf("invalid --ref %s: not a full name with a tag, such as %s", s.ref, reference.TagNameOnly(named))
	}
	s.tag = tagged.Tag()
	return nil
}
