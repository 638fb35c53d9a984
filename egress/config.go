package egress

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"
)

// Config is the configuration file of the built-in proxy, in JSON. A zero
// number or duration means its default.
type Config struct {
	// Listen is the proxy's address and port on the internal segment.
	Listen string `json:"listen"`
	Entries
	// MaxConnections limits concurrent client connections, tunnels included;
	// further ones are answered with 429. Default 1024.
	MaxConnections int `json:"max_connections,omitempty"`
	// MaxRequests limits the requests per minute that each policy entry
	// allows, tunnels included; further ones are answered with 429.
	// Default 6000.
	MaxRequests int `json:"max_requests_per_minute,omitempty"`
	// Learn allows what the policy refuses and logs it as would_block.
	// Special and private addresses are still refused.
	Learn bool `json:"learn,omitempty"`
	// SelfNames are host names of the sandbox. Requests for them, like those for
	// its addresses, are refused with a reason of their own. One that is not a
	// valid host is ignored: no request can be for it.
	SelfNames []string `json:"self_names,omitempty"`
	// Inject is where the secrets are that are inserted into requests; nil: there are none.
	// Only the values of the secrets change in a reload.
	Inject *Inject `json:"inject,omitempty"`
	// Upstream is the address and port of another proxy, which decides about every request:
	// this process is then a [Front], and of the configuration only Listen, Inject and the
	// limits of connections and times apply.
	Upstream string `json:"upstream,omitempty"`
	// HeaderTimeout limits the time to read a request's header, or the first
	// TLS record in a tunnel. Default 10s.
	HeaderTimeout Duration `json:"header_timeout,omitempty"`
	// DialTimeout limits the total time to resolve a name and dial its
	// addresses. Default 30s.
	DialTimeout Duration `json:"dial_timeout,omitempty"`
	// IdleTimeout ends a tunnel or plain request in which no data moved for
	// this long. Default 1h.
	IdleTimeout Duration `json:"idle_timeout,omitempty"`
	// TunnelTimeout is the maximum age of a tunnel or plain request.
	// Default 24h.
	TunnelTimeout Duration `json:"tunnel_timeout,omitempty"`

	// Resolver looks up names. If nil, Go's resolver is used with the system's
	// configuration.
	Resolver Resolver `json:"-"`
}

// Duration is a time.Duration encoded as text in JSON: "90s", "1h".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) {
	return []byte(time.Duration(d).String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("invalid duration %q: expected a value such as 90s or 1h", shorten(string(text)))
	}
	*d = Duration(v)
	return nil
}

// maxConfig is the maximum size of the file. It has room for ten thousand names.
const maxConfig = 4 << 20

// LoadConfig reads and validates a configuration file. Unknown keys and data
// after the object are errors. Errors contain the file name, and the line where
// it is known.
func LoadConfig(path string) (Config, error) { return loadConfig(path, "") }

// loadConfig replaces the file's listen address, unless listen is empty.
func loadConfig(path, listen string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("open proxy configuration: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return Config{}, fmt.Errorf("read proxy configuration %s: %w", path, err)
	}
	cfg, err := parseConfigFor(data, listen)
	if err != nil {
		return Config{}, fmt.Errorf("proxy configuration %s: %w", path, err)
	}
	return cfg, nil
}

func parseConfig(data []byte) (Config, error) { return parseConfigFor(data, "") }

func parseConfigFor(data []byte, listen string) (Config, error) {
	if len(data) > maxConfig {
		return Config{}, fmt.Errorf("too large (max %d bytes)", maxConfig)
	}
	var cfg Config
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil {
		return Config{}, fmt.Errorf("line %d: %w", lineOf(data, err, dec.InputOffset()), err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("line %d: unexpected data after the object", lineAt(data, dec.InputOffset()))
	}
	cfg.Listen = cmp.Or(listen, cfg.Listen)
	if err := checkListen(cfg.Listen); err != nil {
		return Config{}, err
	}
	if _, err := cfg.limits(); err != nil {
		return Config{}, err
	}
	if _, err := cfg.Policy(); err != nil {
		return Config{}, fmt.Errorf("line %d: %w", lineOfEntry(data, err), err)
	}
	return cfg, nil
}

// lineOfEntry returns the line of the entry that an error of Entries.Policy
// refers to. The data has been decoded once, so tokenizing it cannot fail.
func lineOfEntry(data []byte, err error) int {
	var at *entryError
	if !errors.As(err, &at) {
		return 1
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	_, err = dec.Token() // the object
	for err == nil && dec.More() {
		var key json.Token
		if key, err = dec.Token(); err != nil {
			break
		}
		var skipped json.RawMessage
		if name, _ := key.(string); !strings.EqualFold(name, at.list) {
			err = dec.Decode(&skipped)
			continue
		}
		_, err = dec.Token() // the list
		for i := 0; err == nil && dec.More(); i++ {
			if err = dec.Decode(&skipped); i == at.index {
				return lineAt(data, dec.InputOffset())
			}
		}
		return lineAt(data, dec.InputOffset())
	}
	return 1
}

// lineOf returns the line that a decoding error refers to.
func lineOf(data []byte, err error, offset int64) int {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	}
	return lineAt(data, offset)
}

func lineAt(data []byte, offset int64) int {
	return 1 + bytes.Count(data[:min(int(offset), len(data))], []byte("\n"))
}

// checkListen requires a specific address: on the unspecified address the proxy
// would also serve the egress network.
func checkListen(listen string) error {
	ap, err := netip.ParseAddrPort(listen)
	switch {
	case err != nil:
		return fmt.Errorf("listen: invalid address %q: expected ADDRESS:PORT", shorten(listen))
	case ap.Addr().Unmap().IsUnspecified():
		return fmt.Errorf("listen: %s is the unspecified address: use the address of the internal segment", listen)
	}
	return nil
}

// selfNames returns SelfNames in normalized form.
func (c Config) selfNames() []string {
	names := make([]string, 0, len(c.SelfNames))
	for _, s := range c.SelfNames {
		if name, _, err := normalHost(s); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// limits holds a configuration's numbers, with defaults applied.
type limits struct {
	connections, requests      int
	header, dial, idle, tunnel time.Duration
}

func (c Config) limits() (limits, error) {
	l := limits{connections: c.MaxConnections, requests: c.MaxRequests}
	if l.requests == 0 {
		l.requests = 6000
	}
	if l.requests < 0 {
		return limits{}, fmt.Errorf("max_requests_per_minute: %d is negative", l.requests)
	}
	if l.connections == 0 {
		l.connections = 1024
	}
	if l.connections < 0 {
		return limits{}, fmt.Errorf("max_connections: %d is negative", l.connections)
	}
	for _, f := range []struct {
		key  string
		to   *time.Duration
		from Duration
		def  time.Duration
	}{
		{"header_timeout", &l.header, c.HeaderTimeout, 10 * time.Second},
		{"dial_timeout", &l.dial, c.DialTimeout, 30 * time.Second},
		{"idle_timeout", &l.idle, c.IdleTimeout, time.Hour},
		{"tunnel_timeout", &l.tunnel, c.TunnelTimeout, 24 * time.Hour},
	} {
		*f.to = time.Duration(f.from)
		if *f.to == 0 {
			*f.to = f.def
		}
		if *f.to < 0 {
			return limits{}, fmt.Errorf("%s: %s is negative", f.key, *f.to)
		}
	}
	return l, nil
}
