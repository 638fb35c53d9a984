package caller

import (
	"errors"
	"os/user"
	"slices"
	"testing"
)

// TestFromSudo: under sudo the invoking user's ids apply, and never root's, whether
// /etc/passwd knows the user or not.
func TestFromSudo(t *testing.T) {
	root := Caller{Home: "/root", Groups: []int{0, 4}}
	ada := &user.User{Uid: "1000", Gid: "100", HomeDir: "/home/ada"}
	for name, c := range map[string]struct {
		env  map[string]string
		want Caller
	}{
		"without sudo":       {nil, root},
		"invalid id":         {map[string]string{"SUDO_UID": "x"}, root},
		"known user":         {map[string]string{"SUDO_UID": "1000", "SUDO_GID": "1"}, Caller{Home: "/home/ada", UID: 1000, GID: 100, Groups: []int{100, 27}}},
		"unknown user":       {map[string]string{"SUDO_UID": "70000", "SUDO_GID": "513", "SUDO_HOME": "/net/bob"}, Caller{Home: "/net/bob", UID: 70000, GID: 513}},
		"only the user's id": {map[string]string{"SUDO_UID": "70000"}, Caller{UID: 70000, GID: 70000}},
		"root by sudo":       {map[string]string{"SUDO_UID": "0", "SUDO_GID": "0", "SUDO_HOME": "/root"}, Caller{Home: "/root"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := root
			got.fromSudo(func(key string) string { return c.env[key] }, func(id string) (*user.User, error) {
				if id == ada.Uid {
					return ada, nil
				}
				return nil, errors.New("unknown user")
			}, func(*user.User) ([]string, error) { return []string{"100", "27", "x"}, nil })
			if got.Home != c.want.Home || got.UID != c.want.UID || got.GID != c.want.GID || !slices.Equal(got.Groups, c.want.Groups) {
				t.Errorf("got %s %d:%d %v, want %s %d:%d %v", got.Home, got.UID, got.GID, got.Groups, c.want.Home, c.want.UID, c.want.GID, c.want.Groups)
			}
			if u := got.User(); u.UID != got.UID || u.GID != got.GID || !slices.Equal(u.Groups, got.Groups) {
				t.Errorf("user %+v", u)
			}
		})
	}
}
