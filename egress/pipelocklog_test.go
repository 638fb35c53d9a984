package egress

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// pipelockLog are lines as pipelock writes them, each with what is read of it:
// verdict, destination, check and reason.
var pipelockLog = []struct{ line, want string }{
	{`{"level":"info","component":"pipelock","event":"startup","listen":"10.77.0.1:8888","mode":"strict","version":"2.3.0","time":"2026-11-28T02:23:03Z"}`, "|(no host)||"},
	{`{"event":"config_reload","status":"success","detail":"mode=strict"}`, "|(no host)||mode=strict"},
	{`{"event":"shutdown","reason":"signal received"}`, "|(no host)||signal received"},
	{`{"event":"agent_listener","listen":"x","agent":"y"}`, "|(no host)||"},
	{`{"level":"error","event":"error","method":"CONFIG_RELOAD","resource":"/config/pipelock.yaml","error":"rejected: security downgrade from strict mode"}`, "|(no host)||rejected: security downgrade from strict mode"},
	{`{"level":"error","event":"error","method":"CONFIG_RELOAD","url":"/config/pipelock.yaml","error":"rejected"}`, "|(no host)||rejected"},

	{`{"event":"tunnel_open","target":"a.test:443","request_id":"req-1"}`, "allowed|a.test:443||"},
	{`{"event":"tunnel_close","target":"a.test:443","total_bytes":7,"duration_ms":12.3,"request_id":"req-1"}`, "closed|a.test:443||"},
	{`{"event":"forward_http","method":"GET","url":"http://a.test/x","status_code":200,"size_bytes":7}`, "allowed|a.test:80||"},
	{`{"event":"allowed","method":"GET","url":"https://a.test/x?k=v","status_code":200,"size_bytes":7}`, "allowed|a.test:443||"},
	{`{"event":"intercept_http","method":"GET","url":"https://a.test/","status_code":200,"size_bytes":7}`, "allowed|a.test:443||"},
	{`{"event":"ws_open","target":"wss://a.test/"}`, "allowed|wss://a.test/||"},
	{`{"event":"ws_close","target":"wss://a.test/"}`, "closed|wss://a.test/||"},

	{`{"event":"blocked","method":"CONNECT","target":"b.test:443","scanner":"allowlist","reason":"domain not in allowlist: b.test"}`, "refused|b.test:443|allowlist|domain not in allowlist: b.test"},
	{`{"event":"blocked","method":"CONNECT","url":"b.test:443","scanner":"allowlist","reason":"domain not in allowlist: b.test"}`, "refused|b.test:443|allowlist|domain not in allowlist: b.test"},
	{`{"event":"blocked","method":"GET","url":"http://b.test/","scanner":"redirect","reason":"redirect from http://a.test/ blocked: domain not in allowlist: b.test"}`, "refused|b.test:80|allowlist|redirect from http://a.test/ blocked: domain not in allowlist: b.test"},
	{`{"event":"blocked","method":"CONNECT","target":"x.a.test:443","scanner":"blocklist","reason":"domain blocked: x.a.test matches *.x.a.test"}`, "refused|x.a.test:443|denylist|domain blocked: x.a.test matches *.x.a.test"},
	{`{"event":"blocked","target":"a.test:443","scanner":"ssrf","reason":"SSRF blocked: a.test resolves to internal IP 10.0.0.1"}`, "refused|a.test:443|ssrf|SSRF blocked: a.test resolves to internal IP 10.0.0.1"},
	{`{"event":"blocked","target":"a.test:443","scanner":"ssrf","reason":"SSRF check failed: DNS resolution error for a.test: lookup a.test: no such host"}`, "refused|a.test:443|dns|SSRF check failed: DNS resolution error for a.test: lookup a.test: no such host"},
	{`{"event":"blocked","target":"10.0.0.1:443","scanner":"core_ssrf","reason":"core SSRF: 10.0.0.1"}`, "refused|10.0.0.1:443|ssrf|core SSRF: 10.0.0.1"},
	{`{"event":"blocked","url":"http://a.test/?q=v","scanner":"core_dlp","reason":"core DLP match: GitHub Token (critical)"}`, "refused|a.test:80|dlp|core DLP match: GitHub Token (critical)"},
	{`{"event":"blocked","url":"http://a.test/[redacted]","scanner":"body_dlp","reason":"request body contains secret: GitHub Token"}`, "refused|a.test:80|dlp|request body contains secret: GitHub Token"},
	{`{"event":"blocked","url":"http://a.test/[redacted]","scanner":"body_dlp","reason":"request body exceeds max_body_bytes (5242880)"}`, "refused|a.test:80|body|request body exceeds max_body_bytes (5242880)"},
	{`{"event":"blocked","url":"http://a.test/x","scanner":"entropy","reason":"high entropy path segment"}`, "refused|a.test:80|entropy|high entropy path segment"},
	{`{"event":"blocked","target":"k3.a.test:443","scanner":"subdomain_entropy","reason":"high entropy subdomain"}`, "refused|k3.a.test:443|subdomain_entropy|high entropy subdomain"},
	{`{"event":"blocked","url":"http://a.test/v.mp4","scanner":"media_policy","reason":"video blocked"}`, "refused|a.test:80|media_policy|video blocked"},
	{`{"event":"blocked","url":"http://a.test/x","scanner":"response_scan","reason":"compressed response cannot be scanned"}`, "refused|a.test:80|response_scan|compressed response cannot be scanned"},
	{`{"event":"blocked","url":"http://a.test/%0d","scanner":"crlf_injection","reason":"encoded CR or LF in URL"}`, "refused|a.test:80|crlf_injection|encoded CR or LF in URL"},
	{`{"event":"blocked","url":"http://a.test/../x","scanner":"path_traversal","reason":"path traversal"}`, "refused|a.test:80|path_traversal|path traversal"},
	{`{"event":"blocked","url":"http://a.test/x","scanner":"of_a_later_version","reason":"why"}`, "refused|a.test:80|of_a_later_version|why"},
	{`{"event":"header_dlp","method":"GET","url":"http://a.test/","header":"Authorization","action":"block","patterns":["GitHub Token"]}`, "refused|a.test:80|dlp|the header Authorization contains a secret: GitHub Token"},
	{`{"event":"header_dlp","method":"GET","url":"http://a.test/","header":"Authorization","action":"warn","patterns":["GitHub Token"]}`, "noted|a.test:80|dlp|the header Authorization contains a secret: GitHub Token"},
	{`{"event":"body_dlp","method":"POST","url":"http://a.test/","action":"block","match_count":1,"patterns":["GitHub Token","npm Token"]}`, "refused|a.test:80|dlp|the request body contains a secret: GitHub Token, npm Token"},
	{`{"event":"body_prompt_injection","method":"POST","url":"http://a.test/","action":"block","findings":["Jailbreak"]}`, "refused|a.test:80||event body_prompt_injection: Jailbreak"},
	{`{"event":"response_scan","method":"GET","url":"http://a.test/","action":"warn","match_count":1,"patterns":["Jailbreak"]}`, "noted|a.test:80||event response_scan: Jailbreak"},
	{`{"event":"sni_mismatch","connect_host":"a.test","sni_host":"b.test","category":"mismatch"}`, `refused|a.test|sni|the TLS handshake is for "b.test", CONNECT named a.test`},
	{`{"event":"sni_mismatch","connect_host":"a.test","sni_host":"","category":"timeout"}`, "refused|a.test|sni|no TLS handshake that names a.test (timeout)"},
	{`{"event":"ws_blocked","target":"wss://a.test/","scanner":"dlp","reason":"secret"}`, "refused|wss://a.test/|dlp|secret"},
	{`{"event":"kill_switch_deny","transport":"http","endpoint":"/","deny_message":"deny-all active"}`, "refused|(no host)||deny-all active"},

	{`{"event":"error","method":"CONNECT","target":"a.test:443","error":"dial tcp 192.0.2.1:443: connect: connection refused"}`, "failed|a.test:443||dial tcp 192.0.2.1:443: connect: connection refused"},
	{`{"event":"error","method":"GET","url":"http://a.test/?q=v","error":"Get \"http://a.test/?q=secret\": EOF"}`, `failed|a.test:80||Get "http://a.test/?q=***": EOF`},
	{`{"event":"redirect","original_url":"http://a.test/r?to=x","redirect_url":"http://b.test/","hop":1}`, "noted|a.test:80||event redirect: redirected to http://b.test/"},
	{`{"event":"anomaly","method":"GET","url":"http://a.test/","scanner":"dlp","reason":"odd"}`, "noted|a.test:80|dlp|event anomaly: odd"},
	{`{"event":"of_a_later_version","target":"a.test:443","message":"something happened"}`, "noted|a.test:443||event of_a_later_version: something happened"},
	{`{"event":"of_a_later_version","method":"POST"}`, "noted|(no host)||event of_a_later_version"},
}

// Every event and check of pipelock has a reading; one of a later version is shown
// as it is.
func TestPipelockLog(t *testing.T) {
	for _, tc := range pipelockLog {
		n := 0
		for e, err := range ParseLog(strings.NewReader(tc.line)) {
			if n++; err != nil {
				t.Fatal(err)
			}
			if got := strings.Join([]string{e.Verdict(), e.Destination(), e.Scanner, e.Reason}, "|"); got != tc.want {
				t.Errorf("%s\nis read as %s, want %s", tc.line, got, tc.want)
			}
			if strings.Contains(tc.line, `"size_bytes":7`) && e.Bytes != 7 {
				t.Errorf("%s: %d bytes", tc.line, e.Bytes)
			}
			if e.Event == EventStartup && e.Version != "2.3.0" {
				t.Errorf("version %q", e.Version)
			}
		}
		if n != 1 {
			t.Errorf("%s: %d entries", tc.line, n)
		}
	}
	var rule string
	for e, err := range ParseLog(strings.NewReader(pipelockLog[16].line)) {
		if err != nil {
			t.Fatal(err)
		}
		rule = e.Rule
	}
	if rule != "*.x.a.test" {
		t.Errorf("the deny entry is read as %q", rule)
	}
}

// A request with several lines counts once, also with another one between them.
func TestSummarizePipelock(t *testing.T) {
	log := `{"event":"startup"}
{"event":"blocked","url":"http://b.test/","scanner":"allowlist","reason":"redirect from http://a.test/ blocked: domain not in allowlist: b.test","request_id":"req-1"}
{"event":"forward_http","url":"http://c.test/","size_bytes":5,"request_id":"req-2"}
{"event":"blocked","url":"http://a.test/","scanner":"allowlist","reason":"redirect blocked: domain not in allowlist: b.test","request_id":"req-1"}
{"event":"body_dlp","url":"http://d.test/","action":"block","patterns":["x"],"request_id":"req-3"}
{"event":"blocked","url":"http://d.test/","scanner":"body_dlp","reason":"request body contains secret: x","request_id":"req-3"}
{"event":"error","url":"http://d.test/","error":"EOF","request_id":"req-3"}
{"event":"response_scan","url":"http://c.test/","action":"warn","patterns":["x"],"request_id":"req-2"}
{"event":"startup"}
{"event":"blocked","url":"http://b.test/","scanner":"allowlist","reason":"domain not in allowlist: b.test","request_id":"req-1"}
`
	got, err := Summarize(ParseLog(strings.NewReader(log)))
	if err != nil {
		t.Fatal(err)
	}
	want := "[{b.test:80 2 0 2 0 0 allowlist <nil>} {d.test:80 1 0 1 0 0 dlp <nil>} {c.test:80 1 5 0 0 0  <nil>}]"
	if text := fmt.Sprint(got); text != want {
		t.Errorf("%s, want %s", text, want)
	}
}

// Times in whole seconds are compared as such: nothing of the first second is lost.
func TestEntryBefore(t *testing.T) {
	start := time.Date(2026, 11, 28, 2, 23, 3, 700e6, time.UTC)
	for text, want := range map[string]bool{
		"2026-11-28T02:23:02Z": true, "2026-11-28T02:23:03Z": false, "2026-11-28T02:23:04Z": false,
		"2026-11-28T02:23:03.699Z": true, "2026-11-28T02:23:03.700Z": false,
	} {
		for e, err := range ParseLog(strings.NewReader(`{"event":"blocked","time":"` + text + `"}`)) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Before(start) != want {
				t.Errorf("%s before %s: %v", text, start, !want)
			}
		}
	}
}
