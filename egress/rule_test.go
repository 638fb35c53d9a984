package egress

import (
	"strings"
	"testing"
)

func TestParseRule(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tc := range []struct {
		entry string
		want  string // the rule as text; "" for an invalid entry
		err   string // a part of the error
	}{
		{entry: "example.com", want: "example.com"},
		{entry: "EXAMPLE.Com.", want: "example.com"},
		{entry: "example.com:8443", want: "example.com:8443"},
		{entry: "example.com.:8443", want: "example.com:8443"},
		{entry: "*.example.com", want: "*.example.com"},
		{entry: "*.Example.com.:22", want: "*.example.com:22"},
		{entry: "localhost", want: "localhost"},
		{entry: "my_bucket.example.com", want: "my_bucket.example.com"},
		{entry: "1e100.net", want: "1e100.net"},
		{entry: "192.0.2.7", want: "192.0.2.7"},
		{entry: "192.0.2.7:22", want: "192.0.2.7:22"},
		{entry: "2001:DB8::1", want: "2001:db8::1"},
		{entry: "[2001:db8:0::1]:443", want: "[2001:db8::1]:443"},
		{entry: "[2001:db8::1]", want: "2001:db8::1"},
		{entry: "::ffff:192.0.2.7", want: "192.0.2.7"},
		{entry: "bücher.example", want: "xn--bcher-kva.example"},
		{entry: "BÜCHER.example。", want: "xn--bcher-kva.example"},
		{entry: "*.bücher.example", want: "*.xn--bcher-kva.example"},
		{entry: "xn--bcher-kva.example", want: "xn--bcher-kva.example"},
		{entry: long + ".example", want: long + ".example"},

		{entry: "example.com:3000-3010", want: "example.com:3000-3010"},
		{entry: "*.example.com:1-65535", want: "*.example.com:1-65535"},
		{entry: "[2001:db8::1]:80-81", want: "[2001:db8::1]:80-81"},
		{entry: "192.0.2.7:8000-8999", want: "192.0.2.7:8000-8999"},

		{entry: "", err: "empty"},
		{entry: ".", err: "empty label"},
		{entry: "*", err: "allow every host"},
		{entry: "*.", err: "empty"},
		{entry: "*:443", err: "allow every host"},
		{entry: "*.*.example.com", err: "only supported at the start"},
		{entry: "a.*.example.com", err: "only supported at the start"},
		{entry: "*example.com", err: "only supported at the start"},
		{entry: "*.192.0.2.7", err: "no subdomains"},
		{entry: "https://example.com/path", err: `expected a host, not a URL: "example.com"`},
		{entry: "example.com/path", err: "expected only a host: found '/'"},
		{entry: "user@example.com", err: "expected only a host: found '@'"},
		{entry: "10.0.0.0/8", err: "expected only a host: found '/'"},
		{entry: " example.com", err: "space"},
		{entry: "example.com\u00a0", err: "space"},
		{entry: "exam\x00ple.com", err: "control character"},
		{entry: "example.com\r\nX: y", err: "control character"},
		{entry: "example.com\u0085", err: "control character"},
		{entry: "example..com", err: "empty label"},
		{entry: ".example.com", err: "empty label"},
		{entry: "example.com..", err: "empty label"},
		{entry: "-a.example.com", err: "hyphen"},
		{entry: "a-.example.com", err: "hyphen"},
		{entry: "a%2eb.example", err: "invalid character"},
		{entry: "a,b.example", err: "invalid character"},
		{entry: `a\b.example`, err: "invalid character"},
		{entry: long + "a.example", err: "longer than 63"},
		{entry: strings.Repeat("a.", 127) + "ab", err: "longer than 253"},
		{entry: strings.Repeat("a", 5000), err: "longer than 253"},
		{entry: "2130706433", err: "looks like a number"},
		{entry: "0x7f000001", err: "looks like a number"},
		{entry: "0x7f.1", err: "looks like a number"},
		{entry: "127.1", err: "looks like a number"},
		{entry: "0177.0.0.1", err: "looks like a number"},
		{entry: "127.0.0.1.", err: "looks like a number"},
		{entry: "1.2.3.4.5", err: "looks like a number"},
		{entry: "256.1.1.1", err: "looks like a number"},
		{entry: "１２７.０.０.１", err: "looks like a number"},
		{entry: "fe80::1%eth0", err: "zone"},
		{entry: "[fe80::1%eth0]:80", err: "zone"},
		{entry: "[example.com]:80", err: "brackets"},
		{entry: "[192.0.2.7]:80", err: "brackets"},
		{entry: "[::1", err: "brackets"},
		{entry: "[::1]80", err: "expected :port"},
		{entry: "example.com:80:80", err: "more than one colon"},
		{entry: "example.com:", err: "invalid port"},
		{entry: "example.com:0", err: "invalid port"},
		{entry: "example.com:+80", err: "invalid port"},
		{entry: "example.com:080", err: "invalid port"},
		{entry: "example.com:65536", err: "invalid port"},
		{entry: "example.com:https", err: "invalid port"},
		{entry: "example.com:3010-3000", err: "invalid port range"},
		{entry: "example.com:3000-3000", err: "invalid port range"},
		{entry: "example.com:3000-", err: "invalid port"},
		{entry: "example.com:-3000", err: "invalid port"},
		{entry: "example.com:3000-65536", err: "invalid port"},
		{entry: "example.com:0-10", err: "invalid port"},
		{entry: "example.com:1-2-3", err: "invalid port"},
		{entry: "example.com:80,443", err: "invalid port"},
		{entry: "example.com-80", want: "example.com-80"},
		{entry: ":443", err: "empty"},
		{entry: "xn--a.example", err: "internationalized"},
	} {
		r, err := ParseRule(tc.entry)
		switch {
		case tc.err == "" && err != nil:
			t.Errorf("ParseRule(%q): %v", tc.entry, err)
		case tc.err == "" && r.String() != tc.want:
			t.Errorf("ParseRule(%q) is %s, want %s", tc.entry, r, tc.want)
		case tc.err != "" && err == nil:
			t.Errorf("ParseRule(%q) is %s, want an error", tc.entry, r)
		case tc.err != "" && !strings.Contains(err.Error(), tc.err):
			t.Errorf("ParseRule(%q): %v, want %q in it", tc.entry, err, tc.err)
		}
	}
}

func TestPolicyCheck(t *testing.T) {
	p, err := Entries{
		Allow: []string{
			"api.example.com", "*.wild.example", "only.example:8443", "192.0.2.7",
			"2001:db8::1", "bücher.example", "both.example:22",
		},
		SSH: []string{"git.example.com", "git.example.com:2222", "both.example"},
	}.Policy()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		host    string
		port    int
		allowed bool
		rule    string
		ssh     bool
	}{
		{"api.example.com", 443, true, "api.example.com", false},
		{"api.example.com", 80, true, "api.example.com", false},
		{"API.Example.COM.", 443, true, "api.example.com", false},
		{"api.example.com", 8080, false, "api.example.com", false},
		{"api.example.com", 22, false, "api.example.com", false},
		{"x.api.example.com", 443, false, "", false},
		{"xapi.example.com", 443, false, "", false},
		{"api.example.com.evil.example", 443, false, "", false},
		{"example.com", 443, false, "", false},
		{"wild.example", 443, true, "*.wild.example", false},
		{"a.wild.example", 443, true, "*.wild.example", false},
		{"a.b.WILD.example.", 443, true, "*.wild.example", false},
		{"awild.example", 443, false, "", false},
		{"wild.example.org", 443, false, "", false},
		{"*.wild.example", 443, false, "", false},
		{"only.example", 8443, true, "only.example:8443", false},
		{"only.example", 443, false, "only.example:8443", false},
		{"192.0.2.7", 443, true, "192.0.2.7", false},
		{"::ffff:192.0.2.7", 443, true, "192.0.2.7", false},
		{"192.0.2.8", 443, false, "", false},
		{"192.0.2.7.", 443, false, "", false},
		{"3221225991", 443, false, "", false},
		{"0xc0000207", 443, false, "", false},
		{"2001:db8:0:0::1", 80, true, "2001:db8::1", false},
		{"2001:db8::2", 80, false, "", false},
		{"BÜCHER.example", 443, true, "xn--bcher-kva.example", false},
		{"xn--bcher-kva.example", 443, true, "xn--bcher-kva.example", false},
		{"git.example.com", 22, true, "git.example.com:22", true},
		{"git.example.com", 2222, true, "git.example.com:2222", true},
		{"git.example.com", 443, false, "git.example.com:2222", false},
		{"both.example", 22, true, "both.example:22", true},
		{"", 443, false, "", false},
		{"api.example.com\x00", 443, false, "", false},
		{"api.example.com\n", 443, false, "", false},
		{"api.example.com ", 443, false, "", false},
		{"*", 443, false, "", false},
	} {
		v := p.Check(tc.host, tc.port)
		if v.Allowed != tc.allowed || v.Rule != tc.rule || v.SSH != tc.ssh {
			t.Errorf("Check(%q, %d) = %+v, want allowed %v, rule %q, ssh %v", tc.host, tc.port, v, tc.allowed, tc.rule, tc.ssh)
		}
		if v.Allowed == (v.Reason != "") {
			t.Errorf("Check(%q, %d) = %+v: want a reason for refusals only", tc.host, tc.port, v)
		}
		if strings.ContainsAny(v.Reason, "\x00\r\n") {
			t.Errorf("Check(%q, %d): the reason %q contains control characters", tc.host, tc.port, v.Reason)
		}
	}
	if v := (Policy{}).Check("example.com", 443); v.Allowed {
		t.Error("the empty policy allows example.com")
	}
}

func TestPolicyHosts(t *testing.T) {
	p, err := Entries{Allow: []string{"b.example", "*.a.example", "B.example."}, SSH: []string{"git.example"}}.Policy()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(p.Hosts(), " "), "*.a.example b.example git.example:22"; got != want {
		t.Errorf("Hosts() = %s, want %s", got, want)
	}
}

func TestEntriesErrors(t *testing.T) {
	for _, tc := range []struct {
		entries Entries
		want    string
	}{
		{Entries{Allow: []string{"a.example", "https://b.example"}}, `allow[1]: invalid egress entry "https://b.example"`},
		{Entries{SSH: []string{"*"}}, "ssh[0]: "},
		{Entries{SSH: []string{"git.example:22-23"}}, "expected a single port"},
		{Entries{Deny: []string{"a.example", "b.example:x"}}, "deny[1]: "},
		{Entries{Deny: []string{"*"}}, "deny[0]: "},
		{Entries{AllowPrivate: []string{"10.0.0.0/8", "intranet:80"}}, "allow_private[1]: "},
		{Entries{AllowPrivate: []string{"https://intranet"}}, "expected a host, not a URL"},
		{Entries{AllowPrivate: []string{"10.0.0.0/33"}}, "invalid prefix"},
		{Entries{AllowPrivate: []string{"10.1.0.0/8"}}, "expected 10.0.0.0/8"},
		{Entries{AllowPrivate: []string{"0.0.0.0/0"}}, "every private network"},
		{Entries{AllowPrivate: []string{"fe80::1%eth0"}}, "zone"},
		{Entries{AllowPrivate: []string{"::ffff:10.0.0.0/104"}}, "invalid prefix"},
	} {
		if _, err := tc.entries.Policy(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q in it", tc.entries, err, tc.want)
		}
	}
}

// FuzzParseRule checks that the text of a rule parses to the same rule, and that
// a rule allows its own host and no similar one.
func FuzzParseRule(f *testing.F) {
	for _, s := range []string{
		"example.com", "*.example.com:22", "[2001:db8::1]:443", "::ffff:192.0.2.7", "bücher.example",
		"０x7f.1", "a.。", "https://x/", "xn--bcher-kva.example", "K.example", "ß.example", "a\u200d.example",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, entry string) {
		r, err := ParseRule(entry)
		if err != nil {
			return
		}
		again, err := ParseRule(r.String())
		if err != nil || again != r {
			t.Fatalf("%q parses to %+v, but its text %q to %+v (%v)", entry, r, r.String(), again, err)
		}
		host := strings.TrimPrefix(r.Host, "*.")
		port := r.Port
		if port == 0 {
			port = portHTTPS
		}
		p := Policy{Allow: []Rule{r}}
		if v := p.Check(host, port); !v.Allowed {
			t.Fatalf("%q does not allow its own host %q: %+v", entry, host, v)
		}
		if v := p.Check("evil-"+host, port); v.Allowed {
			t.Fatalf("%q allows evil-%s", entry, host)
		}
		if v := p.Check(host+".evil.test", port); v.Allowed {
			t.Fatalf("%q allows %s.evil.test", entry, host)
		}
	})
}
