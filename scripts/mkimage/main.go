// Command mkimage writes an OCI image archive from folders and tar files, for
// the lab's images: no daemon, no build. `ctr images import` takes it. The same
// input gives the same bytes.
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

// spec is the image asked for.
type spec struct {
	out, ref, tag string
	layers        []source
	platform      ocispec.Platform
	config        ocispec.ImageConfig
	// notice is told of what is left out of the image.
	notice func(string)
}

// source is what a layer is made of: a folder, or a tar file.
type source struct {
	path string
	dir  bool
}

// sourceFlag appends to the layers, so that the two flags keep their order.
type sourceFlag struct {
	layers *[]source
	dir    bool
}

func (f sourceFlag) String() string { return "" }
func (f sourceFlag) Type() string   { return "PATH" }
func (f sourceFlag) Set(path string) error {
	if path == "" {
		return errors.New("the path is empty")
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
	flags.Var(sourceFlag{&s.layers, true}, "layer-dir", "a layer of a folder's content; layers are in the order of the flags")
	flags.Var(sourceFlag{&s.layers, false}, "layer-tar", "a layer of a tar file, which may be gzipped")
	flags.StringVar(&s.config.User, "user", "", "USER or UID:GID that commands run as")
	flags.StringVar(&s.config.WorkingDir, "workdir", "", "folder that commands run in")
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
		return nil, fmt.Errorf("%s: the command is written after --", flags.Arg(0))
	}
	return s, s.check(platform, labels)
}

func (s *spec) check(platform string, labels []string) error {
	if s.out == "" {
		return errors.New("--out is missing")
	}
	if len(s.layers) == 0 {
		return errors.New("there is no --layer-dir or --layer-tar")
	}
	for _, e := range s.config.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return fmt.Errorf("--env %s is not NAME=VALUE", e)
		}
	}
	for _, l := range labels {
		name, value, ok := strings.Cut(l, "=")
		if !ok || name == "" {
			return fmt.Errorf("--label %s is not NAME=VALUE", l)
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
		return fmt.Errorf("--platform %s is not linux/ARCHITECTURE", platform)
	}
	s.platform = ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		s.platform.Variant = parts[2]
	}
	return nil
}

// checkRef wants the name as containerd stores it: with a short one it would
// import an image that nobody finds.
func (s *spec) checkRef() error {
	if s.ref == "" {
		return errors.New("--ref is missing")
	}
	named, err := reference.ParseNormalizedNamed(s.ref)
	if err != nil {
		return fmt.Errorf("--ref %q: %w", s.ref, err)
	}
	tagged, ok := reference.TagNameOnly(named).(reference.NamedTagged)
	if !ok || tagged.String() != s.ref {
		return fmt.Errorf("--ref %s is not a full name with a tag, as in %s", s.ref, reference.TagNameOnly(named))
	}
	s.tag = tagged.Tag()
	return nil
}
