package names

import (
	"maps"
	"testing"
)

// TestOwners: the identifiers of different users' bottles never collide, and only the
// owner and root see a bottle.
func TestOwners(t *testing.T) {
	written := []string{"claude-bottle-a", "a", "a.u1000", "a.u1001", "a.u01000", "a.u1000.u1001", "a.u", "a.u99999999999"}
	users := []int{0, 1, 1000, 1001, 4294967295}
	owner := map[string]int{}
	for _, uid := range users {
		for _, name := range written {
			if uid == 0 && Owner(name) != 0 {
				continue // reserved, CheckPinned refuses it
			}
			id := ID(name, uid)
			if other, taken := owner[id]; taken && other != uid {
				t.Errorf("%s is %d's and %d's", id, other, uid)
			}
			owner[id] = uid
			if Owner(id) != uid || Owner(Proxy(id)) != uid {
				t.Errorf("owner of %s: %d, want %d", id, Owner(id), uid)
			}
			if ID(id, uid) != id {
				t.Errorf("ID of %s: %s", id, ID(id, uid))
			}
		}
	}
	for id, uid := range owner {
		for _, who := range users {
			name, ok := Visible(id, who)
			if want := who == 0 || who == uid; ok != want {
				t.Errorf("%s is visible to %d: %v", id, who, ok)
			} else if ok && ID(name, who) != id {
				t.Errorf("%d sees %s as %s, which is %s", who, id, name, ID(name, who))
			}
		}
	}
	got := VisibleNames(map[string]bool{"a.u1000": true, "a.u1000.proxy": true, "b": true, "c.u1001": true}, 1000)
	if want := map[string]bool{"a": true, "a.proxy": true}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for name, bad := range map[string]bool{"a.u1000": true, "a.u": false, "a.u1x": false} {
		if err := CheckPinned(name, nil); (err != nil) != bad {
			t.Errorf("%s: %v", name, err)
		}
	}
}
