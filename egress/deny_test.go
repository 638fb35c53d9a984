package egress

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// Entries of the deny list win over those of the allowlist, whatever their order
// and form, and only where they apply.
func TestPolicyDeny(t *testing.T) {
	p, err := Entries{
		Allow: []string{"*.wild.example", "wild.example:8080", "range.example:3000-3010", "plain.example", "192.0.2.7", "2001:db8::1"},
		SSH:   []string{"git.wild.example"},
		Deny: []string{
			"sub.wild.example", "*.deep.wild.example", "port.wild.example:443", "range.example:3005", "range.example:3008-4000",
			"other.example", "192.0.2.7:80", "[2001:db8::1]:443",
		},
	}.Policy()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		host    string
		port    int
		allowed bool
		rule    string
	}{
		{"a.wild.example", 443, true, "*.wild.example"},
		{"sub.wild.example", 443, false, "sub.wild.example"},
		{"SUB.Wild.Example.", 443, false, "sub.wild.example"},
		{"sub.wild.example", 22, false, "sub.wild.example"},
		{"x.sub.wild.example", 443, true, "*.wild.example"},
		{"deep.wild.example", 443, false, "*.deep.wild.example"},
		{"a.b.deep.wild.example", 80, false, "*.deep.wild.example"},
		{"notdeep.wild.example", 80, true, "*.wild.example"},
		{"port.wild.example", 443, false, "port.wild.example:443"},
		{"port.wild.example", 80, true, "*.wild.example"},
		{"wild.example", 8080, true, "wild.example:8080"},
		{"git.wild.example", 22, true, "git.wild.example:22"},
		{"range.example", 2999, false, "range.example:3000-3010"},
		{"range.example", 3000, true, "range.example:3000-3010"},
		{"range.example", 3004, true, "range.example:3000-3010"},
		{"range.example", 3005, false, "range.example:3005"},
		{"range.example", 3007, true, "range.example:3000-3010"},
		{"range.example", 3008, false, "range.example:3008-4000"},
		{"range.example", 3010, false, "range.example:3008-4000"},
		{"range.example", 3011, false, "range.example:3008-4000"},
		{"range.example", 4001, false, "range.example:3000-3010"},
		{"plain.example", 443, true, "plain.example"},
		{"other.example", 443, false, "other.example"},
		{"192.0.2.7", 443, true, "192.0.2.7"},
		{"::ffff:192.0.2.7", 80, false, "192.0.2.7:80"},
		{"2001:db8:0::1", 443, false, "[2001:db8::1]:443"},
	} {
		v := p.Check(tc.host, tc.port)
		if v.Allowed != tc.allowed || v.Rule != tc.rule {
			t.Errorf("Check(%q, %d) = %+v, want allowed %v, rule %q", tc.host, tc.port, v, tc.allowed, tc.rule)
		}
		if denied := strings.HasPrefix(v.Reason, "denied by the entry "+tc.rule+": "); denied != v.Denied {
			t.Errorf("Check(%q, %d) = %+v: the reason does not name the denying entry", tc.host, tc.port, v)
		}
	}
}

func TestPolicyPorts(t *testing.T) {
	for _, tc := range []struct {
		allow  []string
		ranges []PortRange
		mixed  bool
	}{
		{nil, []PortRange{{443, 443}}, false},
		{[]string{"a.example"}, []PortRange{{80, 80}, {443, 443}}, false},
		{[]string{"a.example:79", "a.example", "a.example:81-90"}, []PortRange{{79, 90}, {443, 443}}, false},
		{[]string{"a.example:3000-3010", "b.example:3005-3020"}, []PortRange{{3000, 3020}}, true},
		{[]string{"a.example:3000-3010", "b.example:3000-3005", "b.example:3006-3010"}, []PortRange{{3000, 3010}}, false},
		{[]string{"a.example:1-65535", "b.example"}, []PortRange{{1, 65535}}, true},
	} {
		p, err := NewPolicy(tc.allow)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.PortRanges(); !slices.Equal(got, tc.ranges) {
			t.Errorf("%v: ranges %v, want %v", tc.allow, got, tc.ranges)
		}
		if got := p.MixedPorts(); got != tc.mixed {
			t.Errorf("%v: mixed %v, want %v", tc.allow, got, tc.mixed)
		}
		want := 0
		for _, r := range tc.ranges {
			want += int(r.Last) - int(r.First) + 1
		}
		if got := p.Ports(); len(got) != want || !slices.IsSorted(got) {
			t.Errorf("%v: %d ports, want %d in order", tc.allow, len(got), want)
		}
	}
}

func TestPolicyCovering(t *testing.T) {
	p, err := Entries{
		Allow: []string{"*.wild.example", "api.example:8000-8010", "web.example"},
		Deny:  []string{"no.wild.example", "api.example:8005"},
	}.Policy()
	if err != nil {
		t.Fatal(err)
	}
	for entry, want := range map[string]string{
		"wild.example":          "*.wild.example",
		"a.wild.example":        "*.wild.example",
		"*.a.wild.example":      "*.wild.example",
		"*.wild.example":        "*.wild.example",
		"*.example":             "*.wild.example",
		"a.wild.example:8080":   "",
		"no.wild.example":       "",
		"no.wild.example:443":   "",
		"*.no.wild.example":     "*.wild.example",
		"api.example":           "api.example:8000-8010",
		"api.example:8005":      "",
		"api.example:8004":      "api.example:8000-8010",
		"api.example:8005-8006": "api.example:8000-8010",
		"api.example:9000":      "",
		"web.example:80":        "web.example",
		"other.example":         "",
	} {
		rule, err := ParseRule(entry)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Covering(rule); got != want {
			t.Errorf("Covering(%s) = %q, want %q", entry, got, want)
		}
	}
}

// The proxy refuses and logs what the deny list names, also while a policy is
// being learned, for plain requests and for names that resolve to a denied
// address. The control is the same request without the entry.
func TestProxyDeny(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") }))
	defer srv.Close()
	web, echoes := portOf(srv.Listener.Addr().String()), serveTCP(t, echo)
	allow := []string{fmt.Sprintf("*.example.com:%d", web)}
	ssh := []string{fmt.Sprintf("a.example.com:%d", echoes)}
	for _, tc := range []struct {
		name, deny, host, reason string
	}{
		{"control", "other.example.com", "a.example.com", ""},
		{"host", "a.example.com", "a.example.com", "a.example.com: a.example.com:%d"},
		{"wildcard", "*.a.example.com", "a.example.com", "*.a.example.com: a.example.com:%d"},
		{"port range", "a.example.com:1-65535", "a.example.com", "a.example.com:1-65535: a.example.com:%d"},
		{"another port", "a.example.com:1", "a.example.com", ""},
		{"address of the name", "127.0.0.1", "a.example.com", "127.0.0.1: a.example.com resolves to 127.0.0.1"},
		{"another address", "127.0.0.2", "a.example.com", ""},
	} {
		for _, learn := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/learn=%v", tc.name, learn), func(t *testing.T) {
				p := startProxy(t, Config{Learn: learn, Entries: Entries{Allow: allow, SSH: ssh, Deny: []string{tc.deny}}})
				target := fmt.Sprintf("%s:%d", tc.host, web)
				res, body, _ := p.raw(t, http.MethodGet, "GET http://"+target+"/ HTTP/1.1\r\nHost: x\r\n\r\n")
				tunnel := fmt.Sprintf("%s:%d", tc.host, echoes)
				if tc.reason == "" {
					if body != "served" {
						t.Errorf("plain HTTP: %s %q", res.Status, body)
					}
					p.connect(t, tunnel).roundTrip(t, "in the tunnel")
					return
				}
				for _, port := range []int{web, echoes} {
					if port == echoes {
						res, body, _ = p.raw(t, http.MethodConnect, "CONNECT "+tunnel+" HTTP/1.1\r\n\r\n")
					}
					reason := "denied by the entry " + tc.reason
					if strings.Contains(reason, "%d") {
						reason = fmt.Sprintf(reason, port)
					}
					if res.StatusCode != http.StatusForbidden || !strings.Contains(body, reason) || strings.Contains(body, "bottle allow") {
						t.Errorf("port %d: %s %q, want %q", port, res.Status, body, reason)
					}
					e := p.log.wait(t, "refusal", func(e Entry) bool { return e.Denied() && e.Reason == reason })
					if e.Scanner != "denylist" || e.Rule != tc.deny {
						t.Errorf("port %d: logged %+v", port, e)
					}
				}
			})
		}
	}
}

// FuzzPolicyDeny checks that nothing which an entry of the deny list matches is
// allowed, and that the deny list allows nothing.
func FuzzPolicyDeny(f *testing.F) {
	f.Add("*.wild.example", "sub.wild.example:3000-3010", "sub.wild.example", 3005)
	f.Add("192.0.2.7:1-65535", "192.0.2.7", "::ffff:192.0.2.7", 80)
	f.Add("a.example", "*.a.example:443", "A.Example.", 443)
	f.Fuzz(func(t *testing.T, allow, deny, host string, port int) {
		with, err := Entries{Allow: []string{allow}, Deny: []string{deny}}.Policy()
		if err != nil || port < 1 || port > 65535 {
			return
		}
		without, err := NewPolicy([]string{allow})
		if err != nil {
			t.Fatal(err)
		}
		v := with.Check(host, port)
		if v.Allowed && !without.Check(host, port).Allowed {
			t.Fatalf("denying %q allows %s", deny, fmt.Sprint(host, ":", port))
		}
		name, addr, err := normalHost(host)
		if err != nil {
			return
		}
		if d := with.Deny[0]; v.Allowed && d.matchesHost(name, addr.IsValid()) && d.deniesPort(port) {
			t.Fatalf("%s:%d is allowed by %q in spite of %q", host, port, allow, deny)
		}
	})
}
