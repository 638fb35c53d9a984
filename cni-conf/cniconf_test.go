package cniconf

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestEmbedded(t *testing.T) {
	for _, dir := range []string{"", t.TempDir(), "/does/not/exist"} {
		n, err := Load(dir)
		if err != nil {
			t.Fatalf("Load(%q): %v", dir, err)
		}
		if n.Egress.Bridge != "bottle0" || n.Egress.Subnet.String() != "10.210.0.0/16" {
			t.Errorf("egress: bridge %s, subnet %s", n.Egress.Bridge, n.Egress.Subnet)
		}
		if n.Internal.Bridge != "internal0" || n.Internal.Subnet.String() != "10.77.0.0/30" {
			t.Errorf("internal: bridge %s, subnet %s", n.Internal.Bridge, n.Internal.Subnet)
		}
		if want := []string{"bridge", "host-local"}; !slices.Equal(n.Egress.Plugins, want) {
			t.Errorf("egress plugins %v, want %v", n.Egress.Plugins, want)
		}
	}
}

func TestOverrideOne(t *testing.T) {
	dir := t.TempDir()
	raw, err := embedded.ReadFile(EgressFile)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(raw), "10.210.0.0/16", "172.31.7.0/24")
	write(t, dir, EgressFile, text)
	n, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if n.Egress.Subnet.String() != "172.31.7.0/24" || n.Egress.Source != filepath.Join(dir, EgressFile) {
		t.Errorf("egress subnet %s from %s", n.Egress.Subnet, n.Egress.Source)
	}
	if n.Internal.Source != "embedded "+InternalFile {
		t.Errorf("internal network from %s", n.Internal.Source)
	}
}

// TestSimple: only of options that concern the bridge and its ports is it known what they create.
func TestSimple(t *testing.T) {
	raw, err := embedded.ReadFile(EgressFile)
	if err != nil {
		t.Fatal(err)
	}
	for change, want := range map[string]bool{
		`"mtu": 1400,`: true, `"macspoofchk": false,`: true, `"new": false,`: true,
		`"macspoofchk": true,`: false, `"new": 1,`: false, `"vlan": 7,`: false,
		``: true,
	} {
		dir := t.TempDir()
		write(t, dir, EgressFile, strings.Replace(string(raw), `"type": "bridge",`, `"type": "bridge",`+change, 1))
		n, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if n.Egress.Simple != want || !n.Internal.Simple {
			t.Errorf("%s: simple %v, want %v; the internal network: %v, want true", change, n.Egress.Simple, want, n.Internal.Simple)
		}
	}
	var list map[string]any
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatal(err)
	}
	list["plugins"] = append(list["plugins"].([]any), map[string]any{"type": "firewall"})
	another, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, EgressFile, string(another))
	if n, err := Load(dir); err != nil || n.Egress.Simple {
		t.Errorf("with another plugin: %+v, %v", n, err)
	}
}

func TestJSONHasDataDir(t *testing.T) {
	n, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	data, err := n.Egress.JSON("/leases")
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Name    string
		Plugins []struct {
			PortIsolation bool
			IPAM          struct{ DataDir string }
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.Name != n.Egress.Name || got.Plugins[0].IPAM.DataDir != "/leases" || !got.Plugins[0].PortIsolation {
		t.Errorf("JSON is %s", data)
	}
}

// TestInvalid makes one change in a valid file. The error must name the file and the
// mistake.
func TestInvalid(t *testing.T) {
	for _, tt := range []struct{ file, old, new, want string }{
		{EgressFile, `"cniVersion"`, `cniVersion`, "invalid character"},
		{EgressFile, `"bottle-egress"`, `"../x"`, "not usable as a directory name"},
		{EgressFile, `"bottle-egress"`, `"bottle-internal"`, "both networks have the name"},
		{EgressFile, `"bridge",`, `"macvlan",`, "first plugin must have type"},
		{EgressFile, `"bottle0"`, `"a-name-that-is-too-long"`, "1 to 15 characters"},
		{EgressFile, `"isGateway": true`, `"isGateway": false`, "isGateway"},
		{EgressFile, `"ipMasq": false`, `"ipMasq": true`, "ipMasq"},
		{EgressFile, `"host-local"`, `"dhcp"`, "host-local"},
		{EgressFile, `10.210.0.0/16`, `10.210.0.0`, "invalid ipam subnet"},
		{EgressFile, `10.210.0.0/16`, `fd00::/64`, "must be IPv4"},
		{EgressFile, `"subnet": "10.210.0.0/16"}`, `"subnet": "10.1.0.0/16"}, {"subnet": "10.2.0.0/16"}`, "2 subnets"},
		{InternalFile, `"isGateway": false`, `"isGateway": true`, "no route out"},
		{InternalFile, `10.77.0.2/30`, `10.78.0.2/30`, "10.77.0.2/30"},
		{InternalFile, `"type": "static",`, `"type": "static", "routes": [{"dst": "0.0.0.0/0"}],`, "no routes"},
	} {
		t.Run(tt.file+" "+tt.new, func(t *testing.T) {
			raw, err := embedded.ReadFile(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(string(raw), tt.old, tt.new, 1)
			if text == string(raw) {
				t.Fatalf("%q is not in %s", tt.old, tt.file)
			}
			dir := t.TempDir()
			write(t, dir, tt.file, text)
			_, err = Load(dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), filepath.Join(dir, tt.file)) {
				t.Errorf("error %v, want one with %q and the file name", err, tt.want)
			}
		})
	}
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, EgressFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("Load accepted a directory in place of the file")
	}
}

func write(t *testing.T, dir, file, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
