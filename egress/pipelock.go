package egress

import (
	"fmt"
	"net/netip"

	"go.yaml.in/yaml/v4"
)

// Addresses that pipelock listens on.
const (
	pipelockListen  = "0.0.0.0:8888"
	pipelockMetrics = "127.0.0.1:9091"
)

// What pipelock needs to scan the body of a plain HTTP response, which it holds in
// memory in several forms. Observed: 17 bytes for each byte of a binary response,
// and 10 with a limit for Go's runtime, which makes it collect garbage earlier. Two
// responses of the largest size pass at the same time within the limit of the task.
// Larger ones are cut by pipelock. Its own default limit is 10 MB.
const (
	// PipelockMaxResponse is the size that pipelock cuts plain HTTP responses to, in MB.
	PipelockMaxResponse = 32
	// PipelockMemory is the least memory limit of pipelock's task, in bytes.
	PipelockMemory int64 = 768 << 20
)

// nothingAllowed replaces an empty allowlist, which pipelock rejects: a name that
// cannot exist (RFC 2606 section 2).
const nothingAllowed = "nothing.invalid"

// pipelockConfig is rendered with only those keys that a version knows: since 2.2.0
// pipelock does not start with an unknown one. Its defaults do not suit an agent:
// no forward proxy, tunnels closed after five minutes, 60 requests per minute.
type pipelockConfig struct {
	Version        int           `yaml:"version"`
	Mode           string        `yaml:"mode"` // only strict denies hosts that are not listed
	Enforce        bool          `yaml:"enforce"`
	ExplainBlocks  bool          `yaml:"explain_blocks"`
	APIAllowlist   []string      `yaml:"api_allowlist"`
	TrustedDomains []string      `yaml:"trusted_domains,omitempty"`
	SSRF           *pipelockSSRF `yaml:"ssrf,omitempty"`
	FetchProxy     struct {
		Listen         string `yaml:"listen"`
		TimeoutSeconds int    `yaml:"timeout_seconds"`
		MaxResponseMB  int    `yaml:"max_response_mb"`
		Monitoring     struct {
			MaxURLLength     int     `yaml:"max_url_length"`
			EntropyThreshold float64 `yaml:"entropy_threshold"`
			// At its default the random labels of listed hosts are refused, such
			// as those of release assets and serverless functions.
			SubdomainEntropyThreshold float64 `yaml:"subdomain_entropy_threshold,omitempty"`
			MaxRequestsPerMinute      int     `yaml:"max_requests_per_minute"`
			// Hosts that are denied although they are allowed. An empty list is
			// written too: without the key, 3.x denies hosts of its own choice.
			Blocklist []string `yaml:"blocklist"`
		} `yaml:"monitoring"`
	} `yaml:"fetch_proxy"`
	ForwardProxy struct {
		Enabled            bool `yaml:"enabled"`
		MaxTunnelSeconds   int  `yaml:"max_tunnel_seconds"`
		IdleTimeoutSeconds int  `yaml:"idle_timeout_seconds"`
		// The stricter sni_require_tls is never set: it breaks ssh.
		SNIVerification bool `yaml:"sni_verification"`
	} `yaml:"forward_proxy"`
	DLP struct {
		ScanEnv         bool `yaml:"scan_env"`
		IncludeDefaults bool `yaml:"include_defaults"`
	} `yaml:"dlp"`
	RequestBodyScanning struct {
		Enabled     bool   `yaml:"enabled"`
		Action      string `yaml:"action"`
		ScanHeaders bool   `yaml:"scan_headers"`
	} `yaml:"request_body_scanning"`
	ResponseScanning struct {
		Enabled bool   `yaml:"enabled"`
		Action  string `yaml:"action"`
	} `yaml:"response_scanning"`
	WebsocketProxy  pipelockSwitch  `yaml:"websocket_proxy"`
	TLSInterception pipelockSwitch  `yaml:"tls_interception"`
	MediaPolicy     *pipelockSwitch `yaml:"media_policy,omitempty"`
	MetricsListen   string          `yaml:"metrics_listen,omitempty"`
	Logging         struct {
		Format         string `yaml:"format"`
		Output         string `yaml:"output"`
		IncludeAllowed bool   `yaml:"include_allowed"`
		IncludeBlocked bool   `yaml:"include_blocked"`
	} `yaml:"logging"`
	Sentry pipelockSwitch `yaml:"sentry"`
}

type pipelockSSRF struct {
	IPAllowlist []string `yaml:"ip_allowlist"`
}

type pipelockSwitch struct {
	Enabled bool `yaml:"enabled"`
}

// Render returns pipelock's configuration for the policy, in YAML, for a version
// of pipelock such as "2.3.0". Pipelock's lists have no ports: the caller must
// enforce [Policy.Ports] itself. The error wraps a [*PipelockVersionError], or
// those of [Policy.CheckPipelock].
func (p Policy) Render(version string) ([]byte, error) {
	v, err := ParsePipelockVersion(version)
	if err == nil {
		err = p.CheckPipelock(v)
	}
	if err != nil {
		return nil, fmt.Errorf("render pipelock's configuration: %w", err)
	}
	data, err := yaml.Marshal(p.pipelock(v))
	if err != nil {
		return nil, fmt.Errorf("render pipelock's configuration: %w", err)
	}
	return data, nil
}

func (p Policy) pipelock(v PipelockVersion) pipelockConfig {
	c := pipelockConfig{
		Version: 1, Mode: "strict", Enforce: true,
		APIAllowlist:   ruleHosts(p.Allow),
		TrustedDomains: ruleHosts(p.PrivateNames),
	}
	if len(c.APIAllowlist) == 0 {
		c.APIAllowlist = []string{nothingAllowed}
	}
	if len(p.Private) > 0 {
		c.SSRF = &pipelockSSRF{IPAllowlist: prefixTexts(p.Private)}
	}
	c.FetchProxy.Listen = pipelockListen
	c.FetchProxy.TimeoutSeconds = 300
	c.FetchProxy.MaxResponseMB = PipelockMaxResponse
	c.FetchProxy.Monitoring.MaxURLLength = 8192
	c.FetchProxy.Monitoring.EntropyThreshold = 5
	c.FetchProxy.Monitoring.MaxRequestsPerMinute = 6000
	c.FetchProxy.Monitoring.Blocklist = append([]string{}, ruleHosts(p.Deny)...)
	if v.atLeast(pipelockPrivate) {
		c.FetchProxy.Monitoring.SubdomainEntropyThreshold = 8 // more than any label has
	}
	if v.atLeast(pipelockStrictKeys) {
		c.MediaPolicy = &pipelockSwitch{} // off: it refuses audio, video and large images
	}
	if !v.atLeast(pipelockNoStats) {
		c.MetricsListen = pipelockMetrics
	}
	c.ForwardProxy.Enabled = true
	c.ForwardProxy.MaxTunnelSeconds = 86400
	c.ForwardProxy.IdleTimeoutSeconds = 3600
	c.ForwardProxy.SNIVerification = true
	c.DLP.IncludeDefaults = true
	c.RequestBodyScanning.Enabled = true
	c.RequestBodyScanning.Action = "block"
	c.RequestBodyScanning.ScanHeaders = true
	c.ResponseScanning.Enabled = true
	c.ResponseScanning.Action = "warn"
	c.Logging.Format = "json"
	c.Logging.Output = "stdout"
	c.Logging.IncludeAllowed = true
	c.Logging.IncludeBlocked = true
	return c
}

// ruleHosts returns the hosts of the rules without ports: in pipelock an entry
// with a port never matches.
func ruleHosts(rules []Rule) []string {
	var hosts []string
	for _, r := range rules {
		hosts = append(hosts, r.Host)
	}
	return sortedUnique(hosts)
}

func prefixTexts(prefixes []netip.Prefix) []string {
	var texts []string
	for _, prefix := range prefixes {
		texts = append(texts, prefix.String())
	}
	return sortedUnique(texts)
}

// PipelockEnv returns the variable for pipelock's process under a memory limit: its
// garbage collector works harder from two thirds of it on.
func PipelockEnv(memory int64) string {
	return fmt.Sprintf("GOMEMLIMIT=%d", memory/3*2)
}
