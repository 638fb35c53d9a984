package hostrule

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
)

const (
	oldID = "1111111111111111111111111111111111111111"
	newID = "2222222222222222222222222222222222222222"
	zero  = "0000000000000000000000000000000000000000"
	caps  = "\x00 report-status-v2 side-band-64k object-format=sha1 agent=git/2.47.0"
)

// pushOf returns the beginning of a push with commands, and a pack.
func pushOf(commands ...string) string {
	var b strings.Builder
	for _, c := range commands {
		b.WriteString(packet(c))
	}
	return b.String() + flush + "PACK\x00\x01"
}

func TestGitRequests(t *testing.T) {
	read := []Rule{{Git: GitRead, Repos: []string{"me/x", "group/sub/y"}}}
	write := []Rule{{Git: GitWrite, Repos: []string{"me/x"}}, {Git: GitRead}}
	oid := strings.Repeat("ab", 32)
	for _, c := range []struct {
		method, target string
		read, write    string // parts of the reasons; empty: allowed
	}{
		{"GET", "/me/x/info/refs?service=git-upload-pack", "", ""},
		{"GET", "/me/x.git/info/refs?service=git-upload-pack", "", ""},
		{"POST", "/me/x.git/git-upload-pack", "", ""},
		{"GET", "/group/sub/y.git/info/refs?service=git-upload-pack", "", ""},
		{"GET", "/me/other/info/refs?service=git-upload-pack", "this repository", ""},
		{"GET", "/me/x/info/refs?service=git-receive-pack", "read-only", ""},
		{"POST", "/me/x/git-receive-pack", "read-only", ""},
		{"POST", "/me/other/git-receive-pack", "this repository", "read-only"},
		{"GET", "/me/x/info/lfs/objects/" + oid, "", ""},
		{"PUT", "/me/x/info/lfs/objects/" + oid, "read-only", ""},
		{"PUT", "/me/x.git/gitlab-lfs/objects/" + oid + "/12", "read-only", ""},
		{"GET", "/me/x/info/lfs/locks?path=a", "", ""},
		{"POST", "/me/x/info/lfs/locks/verify", "read-only", ""},
		{"POST", "/me/x/info/lfs/locks/12/unlock", "read-only", ""},
		{"POST", "/me/x/info/lfs/verify", "read-only", ""},

		{"GET", "/me/x", "no rule", "no rule"},
		{"GET", "/me/x/settings", "no rule", "no rule"},
		{"GET", "/me/x.git.git/info/refs?service=git-upload-pack", "this repository", ""},
		{"GET", "/me/x/.git/info/refs?service=git-upload-pack", "this repository", ""},
		{"GET", "/ME/x/info/refs?service=git-upload-pack", "this repository", ""},
		{"GET", "/other/me/x/info/refs?service=git-upload-pack", "this repository", ""},
		{"GET", "/info/refs?service=git-upload-pack", "this repository", "this repository"},
		{"GET", "/me/x/info/refs", "smart HTTP", "smart HTTP"},
		{"GET", "/me/x/info/refs?service=git-upload-archive", "smart HTTP", "smart HTTP"},
		{"GET", "/me/x/info/refs?service=git-upload-pack&service=git-receive-pack", "smart HTTP", "smart HTTP"},
		{"GET", "/me/x/info/refs?service=git-upload-pack;service=git-receive-pack", "smart HTTP", "smart HTTP"},
		{"GET", "/me/x/info/refs?SERVICE=git-receive-pack&service=git-upload-pack", "smart HTTP", "smart HTTP"},
		{"HEAD", "/me/x/info/refs?service=git-upload-pack", "smart HTTP", "smart HTTP"},
		{"POST", "/me/x/info/refs?service=git-receive-pack", "smart HTTP", "smart HTTP"},
		{"PUT", "/me/x/git-receive-pack", "smart HTTP", "smart HTTP"},
		{"POST", "/me/x/git-upload-pack?service=git-receive-pack", "smart HTTP", "smart HTTP"},
		{"POST", "/me/x/Git-Receive-Pack", "smart HTTP", "smart HTTP"},
		{"POST", "/me/x/git-receive-pack/", "smart HTTP", "smart HTTP"},
		{"POST", "/me/x/%67it-receive-pack", "ambiguous", "ambiguous"},
		{"POST", "/me/x/git-upload-pack/../git-receive-pack", "dot segment", "dot segment"},
		{"POST", "/me/x/git%2dreceive-pack", "ambiguous", "ambiguous"},
		{"DELETE", "/me/x/info/lfs/objects/" + oid, "smart HTTP", "smart HTTP"},
		{"POST", "/me/x/info/lfs/anything", "smart HTTP", "smart HTTP"},
	} {
		for _, set := range []struct {
			name  string
			rules []Rule
			want  string
		}{{"read", read, c.read}, {"write", write, c.write}} {
			got := verdict(NewSet(set.rules).Check(request(t, c.method, c.target)))
			if set.want == "" && got != "" || !strings.Contains(got, set.want) {
				t.Errorf("%s: %s %s: got %q, want %q", set.name, c.method, c.target, got, set.want)
			}
		}
	}
}

// TestGitBesidePaths: paths of a host with git rules do not open git's endpoints.
func TestGitBesidePaths(t *testing.T) {
	s := NewSet([]Rule{{Git: GitRead, Repos: []string{"me/x"}, Paths: []string{"/**"}}, {Paths: []string{"/me/**"}}})
	for target, want := range map[string]string{
		"/me/x/raw/main/a": "", "/me/x/git-receive-pack": "read-only", "/me/x/GIT-RECEIVE-PACK": "smart HTTP", "/me/other/git-upload-pack": "this repository",
	} {
		if got := verdict(s.Check(request(t, "POST", target))); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: got %q", target, got)
		}
	}
	control := NewSet([]Rule{{Paths: []string{"/me/**"}}})
	if got := verdict(control.Check(request(t, "POST", "/me/x/git-receive-pack"))); got != "" {
		t.Errorf("without git rules: %q", got)
	}
}

func TestPush(t *testing.T) {
	rules := []Rule{{Git: GitWrite, Repos: []string{"me/x"}, Push: []string{"refs/heads/bottle/*"}}, {Git: GitWrite, Push: []string{"refs/tags/v*"}}}
	move := oldID + " " + newID + " "
	allowed := move + "refs/heads/bottle/a"
	for name, c := range map[string]struct{ body, want string }{
		"allowed":         {pushOf(allowed + caps), ""},
		"newline":         {pushOf(allowed + caps + "\n"), ""},
		"create":          {pushOf(zero + " " + newID + " refs/heads/bottle/b" + caps), ""},
		"delete":          {pushOf(oldID + " " + zero + " refs/heads/bottle/b" + caps), ""},
		"two":             {pushOf(allowed+caps, move+"refs/tags/v1\n"), ""},
		"shallow":         {pushOf("shallow "+oldID, allowed+caps), ""},
		"sha256":          {pushOf(strings.Repeat("1", 64) + " " + strings.Repeat("2", 64) + " refs/heads/bottle/a" + caps), ""},
		"no commands":     {flush, ""},
		"no capabilities": {pushOf(allowed), ""},
		"upper length":    {strings.ToUpper(packet(allowed)[:4]) + allowed + flush, ""},

		"other ref":            {pushOf(move + "refs/heads/main" + caps), "refs/heads/main"},
		"delete other":         {pushOf(oldID + " " + zero + " refs/heads/main" + caps), "refs/heads/main"},
		"second":               {pushOf(allowed+caps, move+"refs/heads/main"), "refs/heads/main"},
		"tag":                  {pushOf(move + "refs/tags/x" + caps), "refs/tags/x"},
		"deeper":               {pushOf(move + "refs/heads/bottle/a/b" + caps), "refs/heads/bottle/a/b"},
		"prefix":               {pushOf(move + "refs/heads/bottle" + caps), "refs/heads/bottle"},
		"case":                 {pushOf(move + "refs/heads/Bottle/a" + caps), "refs/heads/Bottle/a"},
		"dots":                 {pushOf(move + "refs/heads/bottle/../main" + caps), "invalid ref"},
		"slashes":              {pushOf(move + "refs/heads/bottle//a" + caps), "invalid ref"},
		"line break":           {pushOf(move + "refs/heads/bottle/a\nrefs/heads/main" + caps), "invalid command"},
		"NUL":                  {pushOf(allowed + "\x00refs/heads/main" + caps), "unknown capability"},
		"later NUL":            {pushOf(allowed+caps, move+"refs/heads/bottle/b\x00push-options"), "capabilities after the first"},
		"space":                {pushOf(move + "refs/heads/bottle/a refs/heads/main" + caps), "invalid ref"},
		"not UTF-8":            {pushOf(move + "refs/heads/bottle/\xff" + caps), "invalid ref"},
		"at":                   {pushOf(move + "refs/heads/bottle/a@{1}" + caps), "invalid ref"},
		"lock":                 {pushOf(move + "refs/heads/bottle/a.lock" + caps), "invalid ref"},
		"not a ref":            {pushOf(move + "HEAD" + caps), "invalid ref"},
		"short ID":             {pushOf("1 2 refs/heads/bottle/a" + caps), "invalid command"},
		"upper-case ID":        {pushOf(strings.ToUpper(strings.Repeat("a", 40)) + " " + newID + " refs/heads/bottle/a" + caps), "invalid command"},
		"push options":         {pushOf(allowed + caps + " push-options"), "push options"},
		"unknown capability":   {pushOf(allowed + caps + " magic=1"), "unknown capability"},
		"signed":               {pushOf("push-cert" + caps), "signed"},
		"late shallow":         {pushOf(allowed+caps, "shallow "+oldID), "invalid command"},
		"odd shallow":          {pushOf("shallow "+oldID+" "+allowed, allowed+caps), "invalid command"},
		"delimiter":            {packet(allowed+caps) + "0001" + packet(move+"refs/heads/main") + flush, "length of a packet: 1"},
		"response end":         {packet(allowed+caps) + "0002" + packet(move+"refs/heads/main") + flush, "length of a packet: 2"},
		"length 3":             {packet(allowed+caps) + "0003" + flush, "length of a packet: 3"},
		"empty packet":         {packet(allowed+caps) + "0004" + packet(move+"refs/heads/main") + flush, "length of a packet: 4"},
		"too long packet":      {"fff1" + strings.Repeat("a", 0xffff), "length of a packet: 65521"},
		"sign in length":       {"+034" + allowed + flush, "invalid length"},
		"space in length":      {" 034" + allowed + flush, "invalid length"},
		"length beyond body":   {"0100" + allowed + flush, "unexpected EOF"},
		"without flush packet": {packet(allowed + caps), "unexpected EOF"},
		"empty body":           {"", "no body"},
		"many refs":            {pushOf(append([]string{allowed + caps}, manyCommands(4000)...)...), "longer than"},
	} {
		r := post("/me/x/git-receive-pack", c.body)
		if c.body == "" {
			r.Body = nil
		}
		d := NewSet(rules).Check(r)
		if got := verdict(d); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
		if d == nil && readAll(t, r.Body) != c.body {
			t.Errorf("%s: the body has changed", name)
		}
		// Control: without push every one of them is passed on.
		if got := verdict(NewSet([]Rule{{Git: GitWrite}}).Check(post("/me/x/git-receive-pack", c.body))); got != "" {
			t.Errorf("%s without rules for refs: %q", name, got)
		}
	}
}

func manyCommands(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s %s refs/heads/bottle/%d", oldID, newID, i)
	}
	return out
}

// TestPushEncoding: git does not compress a push. A list of refs that has to be decoded
// first could have two readings.
func TestPushEncoding(t *testing.T) {
	for _, encoding := range []string{"gzip", "x-gzip", "identity"} {
		r := post("/me/x/git-receive-pack", pushOf(oldID+" "+newID+" refs/heads/b"+caps))
		r.Header.Set("Content-Encoding", encoding)
		if got := verdict(NewSet([]Rule{{Git: GitWrite, Push: []string{"refs/heads/*"}}}).Check(r)); !strings.Contains(got, "content encoding") {
			t.Errorf("%s: %q", encoding, got)
		}
	}
}

// endless is a pack that never ends.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	e.read += len(p)
	return len(p), nil
}

func (e *endless) Close() error { return nil }

// TestPushIsStreamed: nothing of the pack is read for the decision.
func TestPushIsStreamed(t *testing.T) {
	pack := &endless{}
	r := post("/me/x/git-receive-pack", "")
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(strings.NewReader(packet(oldID+" "+newID+" refs/heads/b"+caps)+flush), pack), pack}
	if got := verdict(NewSet([]Rule{{Git: GitWrite, Push: []string{"refs/heads/*"}}}).Check(r)); got != "" || pack.read > 0 {
		t.Errorf("%q, and %d bytes of the pack were read", got, pack.read)
	}
}

// TestPushRefusal: git gets a report that no ref was changed.
func TestPushRefusal(t *testing.T) {
	set := NewSet([]Rule{{Git: GitWrite, Push: []string{"refs/heads/b"}}})
	d := set.Check(post("/me/x/git-receive-pack", pushOf(oldID+" "+newID+" refs/heads/b"+caps, oldID+" "+newID+" refs/heads/main")))
	w := httptest.NewRecorder()
	d.Answer(w)
	body := w.Body.Bytes()
	var message, report bytes.Buffer
	for r := bytes.NewReader(body); ; {
		data, ok, err := readPacket(r)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		map[byte]*bytes.Buffer{1: &report, 2: &message}[data[0]].Write(data[1:])
	}
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/x-git-receive-pack-result" {
		t.Errorf("got %d %v", w.Code, w.Header())
	}
	if want := "bottle: no rule for this host allows a push to refs/heads/main\n"; message.String() != want {
		t.Errorf("message %q", message.String())
	}
	if want := packet("unpack ok\n") + packet("ng refs/heads/b refused by bottle\n") + packet("ng refs/heads/main refused by bottle\n") + flush; report.String() != want {
		t.Errorf("report %q", report.String())
	}
}

func TestBatch(t *testing.T) {
	set := NewSet([]Rule{{Git: GitRead}})
	for body, want := range map[string]string{
		`{"operation": "download", "objects": [{"oid": "a"}]}`:   "",
		`{"x": {"operation": "upload"}, "operation":"download"}`: "",
		`{"operation": "upload"}`:                                "no rule allows an upload",
		`{"operation": "download", "operation": "upload"}`:       "more than one operation",
		`{"operation": "download", "Operation": "upload"}`:       "more than one operation",
		`{"operation": "download", "operatio\u006e": "upload"}`:  "more than one operation",
		`{"OPERATION": "download"}`:                              "more than one operation",
		`{"operation": "download"} {"operation": "upload"}`:      "data after the object",
		`{"operation": "download"`:                               "not valid JSON",
		`{"operation": ["download"]}`:                            "not a text",
		`{}`:                                                     "no rule allows an upload",
		`[]`:                                                     "not a JSON object",
		`{"a": "` + strings.Repeat("a", maxRead) + `"}`:          "longer than",
	} {
		r := post("/me/x/info/lfs/objects/batch", body)
		d := set.Check(r)
		if got := verdict(d); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%.80s: got %q, want %q", body, got, want)
		}
		if d == nil && readAll(t, r.Body) != body {
			t.Errorf("%.80s: the body has changed", body)
		}
		if d != nil {
			w := httptest.NewRecorder()
			d.Answer(w)
			if !strings.Contains(w.Body.String(), `{"message":"bottle: `) || w.Code != d.Status {
				t.Errorf("answer %d %s", w.Code, w.Body)
			}
		}
		if got := verdict(NewSet([]Rule{{Git: GitWrite}}).Check(post("/me/x/info/lfs/objects/batch", body))); got != "" {
			t.Errorf("with git: write: %q", got)
		}
	}
}

// FuzzPacket: a packet has the length that it states, and nothing after it is read.
func FuzzPacket(f *testing.F) {
	for _, s := range []string{"0000", "0001", "0004", "0005a", "fff0", "FFFF", "000", "+005a", pushOf("a\x00b")} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		got, ok, err := readPacket(r)
		read := len(data) - r.Len()
		switch {
		case err != nil && ok, errors.Is(err, io.EOF):
			t.Errorf("%q: %v", data, err)
		case err != nil:
		case !ok && (read != 4 || string(data[:4]) != flush), ok && (read != len(got)+4 || !strings.EqualFold(packet(string(got)), string(data[:read]))):
			t.Errorf("%q: read %d bytes for %q", data, read, got)
		}
	})
}

// FuzzPush: of a push that is accepted each command is for an allowed ref, as a parser
// reads it that knows no rules.
func FuzzPush(f *testing.F) {
	move := oldID + " " + newID + " "
	f.Add([]byte(pushOf(move + "refs/heads/b" + caps)))
	f.Add([]byte(pushOf("shallow "+oldID, move+"refs/heads/b"+caps, move+"refs/heads/main\n")))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := readPush(bytes.NewReader(data))
		if err != nil {
			return
		}
		for len(data) >= 4 && string(data[:4]) != flush {
			var n int
			if _, err := fmt.Sscanf(string(data[:4]), "%04x", &n); err != nil || n > len(data) {
				t.Fatalf("%q", data)
			}
			line, _, _ := strings.Cut(strings.TrimSuffix(string(data[4:n]), "\n"), "\x00")
			data = data[n:]
			if strings.HasPrefix(line, "shallow ") {
				continue
			}
			if len(p.refs) == 0 || !strings.HasSuffix(line, " "+p.refs[0]) || len(strings.Fields(line)) != 3 {
				t.Fatalf("%q is not the command for %q", line, p.refs)
			}
			p.refs = p.refs[1:]
		}
	})
}
