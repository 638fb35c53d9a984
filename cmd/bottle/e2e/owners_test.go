package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// sudoer returns a user of sudo with a directory of their own.
func sudoer(t *testing.T, uid int) user {
	t.Helper()
	u := newUser(t)
	for dir := u.dir; dir != os.TempDir(); dir = filepath.Dir(dir) {
		u.chmod(dir, 0o755)
	}
	u = u.with(fmt.Sprintf("SUDO_UID=%d", uid), fmt.Sprintf("SUDO_GID=%d", uid))
	u.own(uid)
	return u
}

// own gives the user's directory to a user.
func (u user) own(uid int) {
	u.t.Helper()
	err := filepath.WalkDir(u.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, uid)
	})
	if err != nil {
		u.t.Fatal(err)
	}
}

// bottleNames returns the names in bottle list.
func (u user) bottleNames(args ...string) []string {
	u.t.Helper()
	r := u.bottle(append([]string{"list", "-q"}, args...)...)
	if r.code != 0 {
		u.t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	names := strings.Fields(r.stdout)
	slices.Sort(names)
	return names
}

// TestOwnersOfBottles: users of sudo see and change only their own bottles, which may
// have the same names. Root sees and changes all.
func TestOwnersOfBottles(t *testing.T) {
	leakcheck.Check(t)
	ada, bob, root := sudoer(t, 41001), sudoer(t, 41002), newUser(t)
	adas, bobs := ada.start("e2e-same"), bob.start("e2e-same")
	if got := ada.bottleNames(); !slices.Equal(got, []string{"e2e-same"}) {
		t.Errorf("ada sees %q", got)
	}
	if got := root.bottleNames(); !slices.Equal(got, []string{"e2e-same.u41001", "e2e-same.u41002"}) {
		t.Errorf("root sees %q", got)
	}
	ada.exec("e2e-same", "sh", "-c", "echo ada >/tmp/mark").want(t, 0, "")
	bob.exec("e2e-same", "cat", "/tmp/mark").want(t, 1, "")
	ada.exec("e2e-same", "cat", "/tmp/mark").want(t, 0, "ada\n")
	root.exec("e2e-same.u41001", "cat", "/tmp/mark").want(t, 0, "ada\n")

	// Whatever bob writes for ada's bottle, it is not there.
	const hers = "e2e-same.u41001"
	for _, args := range [][]string{
		{"exec", hers, "id"}, {"shell", hers}, {"cp", hers + ":/tmp/mark", "."}, {"cp", "bottle.yaml", hers + ":/tmp/x"}, {"diff", hers},
		{"fetch", hers}, {"apply", hers}, {"egress", hers}, {"allow", hers, "evil.test"}, {"deny", hers, "allowed.test"},
		{"inspect", hers}, {"stop", hers}, {"rm", "-f", hers},
	} {
		r := bob.bottle(args...)
		if r.code != 125 || !strings.Contains(r.stderr, "no such bottle: "+hers) {
			t.Errorf("bob: %q: exit %d\n%s", args, r.code, r.stderr)
		}
	}
	bob.bottle("cleanup", "--yes")
	if !bobs.gone() {
		if code := bobs.wait(); code == 0 {
			t.Errorf("cleanup left bob's own bottle: exit %d", code)
		}
	}
	ada.exec("e2e-same", "cat", "/tmp/mark").want(t, 0, "ada\n") // it is still there
	// Control: ada herself and root can end it.
	r := root.bottle("inspect", hers)
	var details []struct{ Owner int }
	if err := json.Unmarshal([]byte(r.stdout), &details); err != nil || len(details) != 1 || details[0].Owner != 41001 {
		t.Errorf("owner %v, %v\n%s", details, err, r.stderr)
	}
	ada.bottle("rm", "-f", "e2e-same").want(t, 0, "e2e-same\n")
	adas.wait()
	if got := root.bottleNames("--all"); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// TestOwnersOfImages: a user of sudo can neither see nor replace the images of another,
// nor replace root's, which everybody can use.
func TestOwnersOfImages(t *testing.T) {
	leakcheck.Check(t)
	ada, bob, root := sudoer(t, 41001), sudoer(t, 41002), newUser(t)
	build := func(u user, uid int, content string) result {
		u.write("Dockerfile", "FROM bottle-demo:latest\nUSER 0\nRUN --network=none echo "+content+" >/mark\n")
		u.own(uid)
		return u.bottle("build", "-q", "-t", "e2e-owned:1", ".")
	}
	show := func(u user, image string) result {
		return u.with("CLAUDE_BOTTLE_IMAGE="+image).bottle("run", "sh", "--proxy", "builtin", "--yes", "-q", "--pull", "never", "--", "-c", "cat /mark")
	}
	for _, u := range []user{ada, bob, root} {
		t.Cleanup(func() { u.bottle("rmi", "-f", "e2e-owned:1"); u.bottle("build", "--prune") })
	}
	if r := build(ada, 41001, "adas"); r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	show(ada, "e2e-owned:1").want(t, 0, "adas\n")
	for _, name := range []string{"e2e-owned:1", "bottle.u41001/docker.io/library/e2e-owned:1"} {
		if r := show(bob, name); r.code != 125 || !strings.Contains(r.stderr, "missing image") {
			t.Errorf("bob runs ada's image as %s: exit %d, %q\n%s", name, r.code, r.stdout, r.stderr)
		}
		bob.write("Dockerfile", "FROM "+name+"\n")
		bob.own(41002)
		if r := bob.bottle("build", "-q", "-t", "e2e-stolen:1", "."); r.code == 0 {
			t.Errorf("bob builds on ada's image %s", name)
		}
		if r := bob.bottle("push", "-q", name); r.code != 125 {
			t.Errorf("bob pushes ada's image %s", name)
		}
	}
	if r := bob.bottle("images"); strings.Contains(r.stdout, "e2e-owned") {
		t.Errorf("bob sees\n%s", r.stdout)
	}
	if r := build(bob, 41002, "bobs"); r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	show(ada, "e2e-owned:1").want(t, 0, "adas\n") // bob's has not replaced it
	show(bob, "e2e-owned:1").want(t, 0, "bobs\n")

	// Root's image is shared below a user's own, and only root replaces or removes it.
	if r := build(root, 0, "roots"); r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	show(ada, "e2e-owned:1").want(t, 0, "adas\n")
	ada.bottle("rmi", "e2e-owned:1").want(t, 0, "docker.io/library/e2e-owned:1\n")
	show(ada, "e2e-owned:1").want(t, 0, "roots\n")
	if r := ada.bottle("rmi", "e2e-owned:1"); r.code != 125 || !strings.Contains(r.stderr, "shared by all users") {
		t.Errorf("ada removes root's image: exit %d\n%s", r.code, r.stderr)
	}
	show(root, "e2e-owned:1").want(t, 0, "roots\n")
}

// TestBottlesPerUser: the administrator's policy limits the bottles of each user.
func TestBottlesPerUser(t *testing.T) {
	ada, bob := sudoer(t, 41001), sudoer(t, 41002)
	setPolicy(t, "version: 1\nbottles_per_user: 1\n")
	first := ada.start("e2e-first")
	r := ada.bottle("run", "sh", "--proxy", "builtin", "--yes", "--name", "e2e-second", "--", "-c", "echo ran")
	if r.code != 125 || !strings.Contains(r.stderr, "bottle 2 of at most 1 is refused by bottles_per_user") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	if r := bob.run("sh", "-c", "echo ran"); r.code != 0 {
		t.Errorf("bob's first: exit %d\n%s", r.code, r.stderr)
	}
	if code := first.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, first.errs)
	}
	if r := ada.run("sh", "-c", "echo ran"); r.code != 0 {
		t.Errorf("control: exit %d\n%s", r.code, r.stderr)
	}
}

// TestOwnersApart: two users with several bottles, in the complete run with 20 each, see
// nothing of one another's. The control is root, who sees all.
func TestOwnersApart(t *testing.T) {
	leakcheck.Check(t)
	n := 2
	if allFaults() {
		n = 20
	}
	users := map[string]user{"ada": sudoer(t, 41001), "bob": sudoer(t, 41002)}
	names := map[string][]string{}
	for i := range n {
		for who, u := range users {
			u.write("bottle.yaml", strings.Replace(manifest, "egress:", "limits: {memory: 128MiB}\n    egress:", 1))
			u.own(map[string]int{"ada": 41001, "bob": 41002}[who])
			name := fmt.Sprintf("e2e-%s-%02d", who, i)
			u.start(name)
			names[who] = append(names[who], name)
		}
	}
	root := newUser(t)
	for who, u := range users {
		other := map[string]string{"ada": "bob", "bob": "ada"}[who]
		if got := u.bottleNames("--all"); !slices.Equal(got, names[who]) {
			t.Errorf("%s sees %q", who, got)
		}
		for _, args := range [][]string{{"list", "--all", "--json"}, {"inspect"}, {"stats", "--no-stream"}, {"images"}, {"egress"}, {"cleanup", "--no-input"}, {"doctor"}} {
			if args[0] == "inspect" {
				args = append(args, names[who]...)
			}
			if r := u.bottle(args...); strings.Contains(r.stdout+r.stderr, "e2e-"+other) {
				t.Errorf("%s: %q:\n%s%s", who, args, r.stdout, r.stderr)
			}
		}
		for _, name := range names[other] {
			for _, id := range []string{name, name + map[string]string{"ada": ".u41001", "bob": ".u41002"}[other]} {
				if r := u.bottle("inspect", id); r.code != 125 || !strings.Contains(r.stderr, "no such bottle") {
					t.Errorf("%s: %s: exit %d\n%s%s", who, id, r.code, r.stdout, r.stderr)
				}
			}
		}
		if r := root.bottle("list", "--all", "--json"); strings.Count(r.stdout, "e2e-"+who) < n {
			t.Errorf("control: root sees\n%s%s", r.stdout, r.stderr)
		}
	}
}
