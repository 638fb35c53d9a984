package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
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

	"github.com/bot-bottle/bottle/internal/lazyregexp"
	"github.com/bot-bottle/bottle/internal/registryerr"
)

// Errors of Pull and Push that a caller can distinguish.
var (
	ErrNotFound    = errors.New("image not found in the registry")
	ErrDenied      = errors.New("access denied by the registry")
	ErrUnreachable = errors.New("registry is not reachable")
	ErrCorrupt     = errors.New("corrupt data from the registry")
	ErrLayer       = errors.New("invalid image layer")
	ErrNoSpace     = errors.New("no space left on containerd's disk")
	ErrUntrusted   = errors.New("registry certificate is not trusted")
)

// DeniedError is an ErrDenied that names the host that refused: the image's registry,
// or a mirror that is configured for it.
type DeniedError struct {
	Host string
	Ref  string
	Err  error // why no credentials were found, or nil
}

func (e *DeniedError) Error() string {
	text := fmt.Sprintf("%v: %s", ErrDenied, e.Ref)
	if e.Host != domain(e.Ref) {
		text += " from mirror " + e.Host
	}
	if e.Err != nil {
		text += ": no login found: " + e.Err.Error()
	}
	return text
}

// Is reports that a DeniedError is an ErrDenied.
func (e *DeniedError) Is(target error) bool { return target == ErrDenied }

func (e *DeniedError) Unwrap() error { return e.Err }

// Default timeouts for a registry that does not respond.
const (
	responseTimeout = 30 * time.Second // until the name is resolved
	stallTimeout    = 2 * time.Minute  // afterwards, without progress
)

// DefaultHostsDir is where containerd's own tools look for hosts.toml files.
const DefaultHostsDir = "/etc/containerd/certs.d"

// Remote configures access to registries.
type Remote struct {
	// HostsDir holds one directory per registry with a hosts.toml, as described in
	// containerd's docs/hosts.md; empty: DefaultHostsDir. A registry without an
	// entry is accessed over HTTPS, or over HTTP if it is on loopback.
	HostsDir string
	Login    Login
	// ResponseTimeout bounds how long resolving a name may take, and StallTimeout
	// how long a transfer may make no progress; zero: 30 seconds and 2 minutes.
	ResponseTimeout, StallTimeout time.Duration
	Progress                      ProgressFunc
}

// silent discards the client's own log: the client logs the end of the progress
// stream as an error, and real failures are returned as errors.
var silent = func() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}()

// transfer runs one transfer in the daemon and cancels it when the registry does
// not respond for too long. resolved, which may be nil, is called with the
// descriptor the name resolves to as soon as the daemon reports it; ends returns
// the transfer's source and destination.
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
		return fmt.Errorf("configure the registry of %s: %w", ref, err)
	}
	out := newGate(r.Progress)
	stall := orDefault(r.StallTimeout, stallTimeout)
	timer := time.AfterFunc(orDefault(r.ResponseTimeout, responseTimeout), func() { cancel(ErrUnreachable) })
	defer timer.Stop()
	from, to := ends(reg)
	err = s.ctrd.Transfer(ctx, from, to, transfer.WithProgress(func(p transfer.Progress) {
		// The daemon sends the first event before it contacts the registry.
		if !strings.HasPrefix(p.Event, "Resolving") && !strings.HasPrefix(p.Event, "Pushing") && timer.Stop() {
			timer.Reset(stall)
		}
		if resolved != nil && p.Desc != nil && (store.IsIndexType(p.Desc.MediaType) || store.IsManifestType(p.Desc.MediaType)) {
			resolved(*p.Desc)
			resolved = nil
		}
		if l, ok := layerProgress(p); ok {
			out.report(l)
		}
	}))
	out.close(err == nil)
	if err == nil {
		return nil
	}
	asked, lerr := logins.result()
	return classify(ctx, ref, err, asked, lerr)
}

// hostsDir returns the directory of hosts.toml files. It is empty if the default
// directory is missing: the daemon would fail on a missing directory.
func hostsDir(dir string) (string, error) {
	if dir == "" {
		if _, err := os.Stat(DefaultHostsDir); err != nil {
			return "", nil //nolint:nilerr // the default directory is optional
		}
		return DefaultHostsDir, nil
	}
	fi, err := os.Stat(dir)
	if err == nil && !fi.IsDir() {
		err = errors.New("not a directory")
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

// classify determines why a transfer failed. Apart from a few codes, the daemon's
// errors arrive as text.
func classify(ctx context.Context, ref string, err error, asked []string, logins error) error {
	host := domain(ref)
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, ErrUnreachable):
		return fmt.Errorf("%w: timed out waiting for %s", ErrUnreachable, host)
	case cause != nil:
		return cause
	}
	kind := kindOf(err)
	switch {
	case errors.Is(kind, ErrDenied):
		return &DeniedError{Host: cmp.Or(registryerr.DeniedBy(err, asked), host), Ref: ref, Err: logins}
	case errors.Is(kind, ErrNotFound):
		return fmt.Errorf("%w: %s", kind, ref)
	case kind == nil:
		return shortened(err)
	}
	return fmt.Errorf("%w: %s: %w", kind, host, shortened(err))
}

// errorTexts are fragments of the daemon's errors, in order of precedence.
var errorTexts = []struct {
	kind error
	any  []string
}{
	{ErrNoSpace, []string{"no space left on device", "disk quota exceeded"}},
	{ErrUntrusted, []string{"x509:", "tls: failed to verify"}},
	{ErrDenied, registryerr.Denied},
	{ErrLayer, []string{"failed to extract layer"}}, // its digest was correct
	{ErrCorrupt, []string{"unexpected commit digest", "unexpected commit size", "failed size validation", "unexpected EOF", "short read", "invalid tar header", "content digest"}},
	{ErrUnreachable, []string{"connection refused", "no such host", "network is unreachable", "no route to host", "i/o timeout", "TLS handshake timeout", "connection reset", "server gave HTTP response to HTTPS client", "server misbehaving", "502 Bad Gateway", "503 Service Unavailable"}},
}

func kindOf(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, t := range errorTexts {
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

// maxText bounds the text of a daemon's error, in bytes: some contain a complete
// HTML page from a registry.
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

// extracting matches the beginning of the daemon's unpacking errors, which name the
// layer's digest and the directory it was unpacked into.
var extracting = lazyregexp.New(`failed to extract layer \(?(?:\S+ )?(\w+:\w+)\)?:? .*mount callback failed on (\S+): `)

// inLayer rewrites an unpacking error to name the layer and the path in the image.
func inLayer(text string) string {
	m := extracting().FindStringSubmatchIndex(text)
	if m == nil {
		return text
	}
	return "layer " + text[m[2]:m[3]] + ": " + strings.ReplaceAll(text[m[1]:], text[m[4]:m[5]], "")
}

// domain returns the registry of a normalised reference.
func domain(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.Domain(named)
}
