package inject

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/bot-bottle/bottle/internal/secret"
)

// file is the form in which a proxy reads its secrets. Unlike a [Secret] it shows the
// value.
type file struct {
	CA      string       `json:"ca"` // of [CA.Marshal]
	Secrets []fileSecret `json:"secrets"`
}

type fileSecret struct {
	Name        string   `json:"name"`
	Value       string   `json:"value"`
	Placeholder string   `json:"placeholder"`
	Hosts       []string `json:"hosts"`
	Headers     []string `json:"headers,omitempty"`
	NoHeaders   bool     `json:"no_headers,omitempty"`
	Query       bool     `json:"query,omitempty"`
	Body        bool     `json:"body,omitempty"`
}

// Encode returns the CA with its key and the secrets with their values. The result may
// be written to tmpfs, mode 0400, and nowhere else.
func Encode(ca *CA, secrets []Secret) ([]byte, error) {
	key, err := ca.Marshal()
	if err != nil {
		return nil, err
	}
	f := file{CA: string(key)}
	for _, s := range secrets {
		f.Secrets = append(f.Secrets, fileSecret{
			Name: s.Name, Value: s.Value.Reveal(), Placeholder: s.Placeholder, Hosts: s.Hosts,
			Headers: s.Headers, NoHeaders: s.NoHeaders, Query: s.Query, Body: s.Body,
		})
	}
	return json.Marshal(f)
}

// Decode reads what Encode has written. Errors contain nothing of it.
func Decode(data []byte) (*CA, []Secret, error) {
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, nil, errors.New("parse secrets: invalid JSON")
	}
	ca, err := ParseCA([]byte(f.CA))
	if err != nil {
		return nil, nil, fmt.Errorf("parse secrets: %w", err)
	}
	var secrets []Secret
	for _, s := range f.Secrets {
		secrets = append(secrets, Secret{
			Name: s.Name, Value: secret.New(s.Value), Placeholder: s.Placeholder, Hosts: s.Hosts,
			Headers: s.Headers, NoHeaders: s.NoHeaders, Query: s.Query, Body: s.Body,
		})
	}
	return ca, secrets, nil
}
