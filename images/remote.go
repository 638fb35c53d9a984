package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
)

// Errors of Pull and Push that a caller words differently.
var (
	ErrNotFound    = errors.New("the registry has no such image")
	ErrDenied      = errors.New("the registry refuses access")
	ErrUnreachable = errors.New("the registry does not answer")
	ErrCorrupt     = errors.New("the registry sent other bytes than it promised")
	ErrLayer       = errors.New("a layer of the image cannot be unpacked")
	ErrNoSpace     = errors.New("no space left on containerd's disk")
	ErrUntrusted   = errors.New("the registry's certificate is not trusted")
)

// Deadlines of a registry that says nothing.
const (
	answerTime = 30 * time.Second // until it has told what the name stands for
	stallTime  = 2 * time.Minute  // afterwards, without a byte
)

// DefaultHostsDir is where containerd's own tools look for hosts.toml files.
const DefaultHostsDir = "/etc/containerd/certs.d"

// Remote says how registries are spoken to.
type Remote struct {
	// HostsDir holds a folder for each registry with a hosts.toml, as
	// containerd's docs/hosts.md describes; empty: DefaultHostsDir. Without a
	// word in it a registry is spoken to by HTTPS, one on loopback by HTTP.
	HostsDir string
	Login    Login
	// Answer and Stall bound how long a registry may be silent before it has
	// answered, and afterwards; zero: 30 seconds and 2 minutes.
	Answer, Stall time.Duration
	Progress      ProgressFunc
}

// silent is for the client's own log: that its stream of progress ends when
// the transfer does is an error there, and what fails is told by errors.
var silent = func() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}()

// transfer runs one transfer of the daemon's, given up when the registry is
// silent for too long. resolved may be nil, and is told what the name stands for,
// as soon as the daemon knows; ends makes the transfer's two ends of a registry's.
func (s *Store) transfer(ctx context.Context, ref string, r Remote, resolved func(ocispec.Descriptor), ends func(*registry.OCIRegistry) (from, to any)) error {
	logins := &loginStore{login: r.Login}
	ctx, cancel := context.WithCancelCause(log.WithLogger(ctx, silent))
	defer cancel(nil)
	hosts, err := hostsDir(r.HostsDir)
	if err != nil {
		return err
	}
	reg, err := registry.NewOCIRegistry(ctx, ref, registry.WithCredentials(logins), registry.WithHostDir(hosts))
	if err != nil {
		return fmt.Errorf("reach the registry of %s: %w", ref, err)
	}
	out := newGate(r.Progress)
	stall := orDefault(r.Stall, stallTime)
	silence := time.AfterFunc(orDefault(r.Answer, answerTime), func() { cancel(ErrUnreachable) })
	defer silence.Stop()
	from, to := ends(reg)
	err = s.ctrd.Transfer(ctx, from, to, transfer.WithProgress(func(p transfer.Progress) {
		// The first word is the daemon's own, before it has asked anybody.
		if !strings.HasPrefix(p.Event, "Resolving") && !strings.HasPrefix(p.Event, "Pushing") && silence.Stop() {
			silence.Reset(stall)
		}
		if resolved != nil && p.Desc != nil && (store.IsIndexType(p.Desc.MediaType) || store.IsManifestType(p.Desc.MediaType)) {
			resolved(*p.Desc)
			resolved = nil
		}
		if l, ok := layerProgress(p); ok {
			out.tell(l)
		}
	}))
	out.close(err == nil)
	if err == nil {
		return nil
	}
	return classify(ctx, ref, err, logins.failed())
}

// hostsDir is where hosts.toml files are, or nothing: the daemon would fail
// over a named folder that is not there.
func hostsDir(dir string) (string, error) {
	if dir == "" {
		if _, err := os.Stat(DefaultHostsDir); err != nil {
			return "", nil //nolint:nilerr // without the default folder there are no settings
		}
		return DefaultHostsDir, nil
	}
	fi, err := os.Stat(dir)
	if err == nil && !fi.IsDir() {
		err = errors.New("it is no folder")
	}
	if err != nil {
		return "", fmt.Errorf("read registry settings in %s: %w", dir, err)
	}
	return dir, nil
}

func orDefault(d, fallback time.Duration) time.Duration {
	if d == 0 {
		return fallback
	}
	return d
}

// classify says what a failed transfer failed for. The daemon's errors come as
// text, but for a few codes.
func classify(ctx context.Context, ref string, err, logins error) error {
	host := domain(ref)
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, ErrUnreachable):
		return fmt.Errorf("%w: %s was silent for too long", ErrUnreachable, host)
	case cause != nil:
		return cause
	}
	kind := kindOf(err)
	switch {
	case errors.Is(kind, ErrDenied) && logins != nil:
		return fmt.Errorf("%w: %s: no login was found: %w", kind, host, logins)
	case errors.Is(kind, ErrDenied) || errors.Is(kind, ErrNotFound):
		return fmt.Errorf("%w: %s", kind, ref)
	case kind == nil:
		return shortened(err)
	}
	return fmt.Errorf("%w: %s: %w", kind, host, shortened(err))
}

// texts are what the daemon's errors hold, in the order in which they decide.
var texts = []struct {
	kind error
	any  []string
}{
	{ErrNoSpace, []string{"no space left on device", "disk quota exceeded"}},
	{ErrUntrusted, []string{"x509:", "tls: failed to verify"}},
	{ErrDenied, []string{"401 Unauthorized", "403 Forbidden", "authorization failed", "insufficient_scope", "no basic auth credentials", "unauthorized:", "denied:"}},
	{ErrLayer, []string{"failed to extract layer"}}, // it came as it was promised
	{ErrCorrupt, []string{"unexpected commit digest", "unexpected commit size", "failed size validation", "unexpected EOF", "short read", "invalid tar header", "content digest"}},
	{ErrUnreachable, []string{"connection refused", "no such host", "network is unreachable", "no route to host", "i/o timeout", "TLS handshake timeout", "connection reset", "server gave HTTP response to HTTPS client", "server misbehaving", "502 Bad Gateway", "503 Service Unavailable"}},
}

func kindOf(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, t := range texts {
		for _, part := range t.any {
			if strings.Contains(text, part) {
				return t.kind
			}
		}
	}
	if errdefs.IsNotFound(err) || strings.Contains(text, "404 Not Found") {
		return ErrNotFound
	}
	return nil
}

// maxText bounds a daemon's error as it is told, in bytes: some hold a whole
// page of a registry's.
const maxText = 400

func shortened(err error) error {
	text := cut(inLayer(err.Error()))
	if text == err.Error() {
		return err
	}
	return errors.New(text)
}

func cut(text string) string {
	if len(text) <= maxText {
		return text
	}
	return strings.ToValidUTF8(text[:maxText], "") + "…"
}

// extracting is how the daemon's errors of unpacking begin: with the layer's
// digest, and the folder in which it was at work.
var extracting = regexp.MustCompile(`failed to extract layer \(?(?:\S+ )?(\w+:\w+)\)?:? .*mount callback failed on (\S+): `)

// inLayer says of an error of unpacking in which layer, and where in the image.
func inLayer(text string) string {
	m := extracting.FindStringSubmatchIndex(text)
	if m == nil {
		return text
	}
	return "layer " + text[m[2]:m[3]] + ": " + strings.ReplaceAll(text[m[1]:], text[m[4]:m[5]], "")
}

// domain is the registry of a normalised reference.
func domain(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.Domain(named)
}
