package hostrule

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
)

// parse returns a request as net/http reads it from a client.
func parse(t testing.TB, text string) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return r
}

func request(t testing.TB, method, target string, headers ...string) *http.Request {
	t.Helper()
	return parse(t, method+" "+target+" HTTP/1.1\r\nHost: h.test\r\n"+strings.Join(append(headers, ""), "\r\n")+"\r\n")
}

func post(target, body string) *http.Request {
	r, err := http.NewRequest(http.MethodPost, "https://h.test"+target, strings.NewReader(body)) //nolint:noctx // not sent
	if err != nil {
		panic(err)
	}
	r.RequestURI = target
	return r
}

// verdict is "" for an allowed request, or the reason of the denial.
func verdict(d *Denial) string {
	if d == nil {
		return ""
	}
	return d.Reason
}

func readAll(t testing.TB, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
