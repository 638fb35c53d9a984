package inject

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/secret"
)

// TestSetValue: later requests have the new value, and the old one is still hidden.
func TestSetValue(t *testing.T) {
	const second = "sk-ant-api03-SecondSecondSecondSecondSecondSecondSecond"
	w := newWorld(t, options{handler: func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Api-Key")[:20]+" "+realValue+" "+second)
	}})
	r := w.request(http.MethodGet, "/", nil)
	r.Header.Set("X-Api-Key", w.placeholder)
	if err := w.in.SetValue("KEY", secret.New(second)); err != nil {
		t.Fatal(err)
	}
	_, body := w.do(w.client(false), r)
	check(t, "response", body, second[:20]+" "+w.placeholder+" "+w.placeholder)
	for _, err := range []error{w.in.SetValue("OTHER", secret.New(second)), w.in.SetValue("KEY", secret.New("short"))} {
		if err == nil {
			t.Error("accepted an invalid change")
		}
	}
}

func TestInvalidConfiguration(t *testing.T) {
	ca, err := NewCA([]string{apiHost})
	if err != nil {
		t.Fatal(err)
	}
	good := Secret{Name: "KEY", Value: secret.New(realValue), Placeholder: Placeholder(realValue), Hosts: []string{apiHost}}
	dial := (&world{}).dialUpstream
	if _, err := New(Config{Secrets: []Secret{good}, CA: ca, Dial: dial}); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Secret){
		"too short":               func(s *Secret) { s.Value = secret.New("1234567") },
		"control character":       func(s *Secret) { s.Value = secret.New(realValue + "\n") },
		"invalid placeholder":     func(s *Secret) { s.Placeholder = realValue },
		"missing hosts":           func(s *Secret) { s.Hosts = nil },
		"the certificate auth":    func(s *Secret) { s.Hosts = []string{otherHost} },
		"expected a DNS name":     func(s *Secret) { s.Hosts = []string{"127.0.0.1"} },
		"invalid host \"*.x\"":    func(s *Secret) { s.Hosts = []string{"*.x"} },
		"invalid port":            func(s *Secret) { s.Hosts = []string{apiHost + ":0"} },
		"have the same placehold": func(s *Secret) { s.Placeholder = good.Placeholder },
	} {
		bad := good
		bad.Placeholder = Placeholder(realValue)
		change(&bad)
		_, err := New(Config{Secrets: []Secret{good, bad}, CA: ca, Dial: dial})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), realValue) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
