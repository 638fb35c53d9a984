package names

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
)

// Bottles of users of sudo have an owner: the ID of such a bottle ends with the owner's
// user ID, so that names of different users cannot collide, and a user cannot name
// another user's bottle. The user sees and writes the name without it. Bottles of root
// have their names as IDs.

const ownerMark = ".u"

// ID returns the identifier of a user's bottle.
func ID(name string, uid int) string {
	if uid == 0 {
		return name
	}
	suffix := ownerMark + strconv.Itoa(uid)
	if strings.HasSuffix(name, suffix) {
		return name
	}
	return name + suffix
}

// Owner returns the user ID of a bottle's owner, by the identifier of the bottle or of
// its proxy: 0 is root.
func Owner(id string) int {
	id = Bottle(id)
	i := strings.LastIndex(id, ownerMark)
	if i < 0 {
		return 0
	}
	uid, err := strconv.ParseUint(id[i+len(ownerMark):], 10, 32)
	if err != nil || id[i:] != ownerMark+strconv.FormatUint(uid, 10) {
		return 0
	}
	return int(uid)
}

// Visible returns the name of a bottle, or the identifier of its proxy, as a user writes
// it. ok is false if the bottle is another user's. Root sees all, by their identifiers.
func Visible(id string, uid int) (name string, ok bool) {
	if uid == 0 {
		return id, true
	}
	if Owner(id) != uid {
		return "", false
	}
	suffix := ownerMark + strconv.Itoa(uid)
	base := Bottle(id)
	return strings.TrimSuffix(base, suffix) + id[len(base):], true
}

// Bare returns an identifier without its owner: the name as the owner writes it.
func Bare(id string) string {
	name, _ := Visible(id, Owner(id)) // the owner sees it
	return name
}

// VisibleNames returns the names of a set as a user sees them.
func VisibleNames(ids map[string]bool, uid int) map[string]bool {
	out := make(map[string]bool, len(ids))
	for id := range ids {
		if name, ok := Visible(id, uid); ok {
			out[name] = ids[id]
		}
	}
	return out
}

// CountBottles returns the number of bottles in a set of names.
func CountBottles(names map[string]bool) int {
	n := 0
	for name := range names {
		if Bottle(name) == name {
			n++
		}
	}
	return n
}

// CheckID checks the identifier of a user's bottle.
func CheckID(name string, uid int) error {
	if strings.Contains(name, Unusable) {
		return &hint.Error{
			Err:  fmt.Errorf("invalid bottle name %q: gVisor can run nothing in a sandbox with %q in its name", name, Unusable),
			Hint: "choose another name with --name or CLAUDE_BOTTLE_CONTAINER",
		}
	}
	if id := ID(name, uid); len(id) > maxName {
		return &hint.Error{
			Err:  fmt.Errorf("bottle name %q is too long: %d characters (max %d)", name, len(name), maxName-len(id)+len(name)),
			Hint: "choose a shorter name with --name or CLAUDE_BOTTLE_CONTAINER",
		}
	}
	return nil
}
