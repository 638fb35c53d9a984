package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
)

// The pods' addresses of IPv6 have this prefix, and the node the first of them.
const prefix6 = "fd00:244::"

// plugin6 is a network plugin (github.com/containernetworking/cni, SPEC.md) that follows ptp
// and gives a pod an address of IPv6 too. ptp itself would wait seconds for the end of the
// detection of duplicates.
func plugin6() error {
	switch os.Getenv("CNI_COMMAND") {
	case "VERSION":
		fmt.Println(`{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}`)
		return nil
	case "ADD":
	default:
		return nil // the links of the pod go with it
	}
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var config struct{ PrevResult json.RawMessage }
	if err := json.Unmarshal(in, &config); err != nil {
		return err
	}
	var result struct {
		Interfaces []struct{ Name, Sandbox string }
		IPs        []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(config.PrevResult, &result); err != nil {
		return err
	}
	if len(result.Interfaces) == 0 || result.Interfaces[0].Sandbox != "" || len(result.IPs) == 0 {
		return errors.New("no result of ptp")
	}
	host, pod := result.Interfaces[0].Name, os.Getenv("CNI_IFNAME")
	ip4 := result.IPs[0].Address.Addr().As4()
	addr := fmt.Sprintf("%s%x", prefix6, ip4[3])
	inside := []string{"nsenter", "--net=" + os.Getenv("CNI_NETNS"), "--"}
	for _, command := range [][]string{
		{"ip", "address", "add", prefix6 + "1/128", "dev", host, "nodad"},
		{"ip", "route", "add", addr, "dev", host},
		append(inside, "ip", "address", "add", addr+"/64", "dev", pod, "nodad"),
		append(inside, "ip", "route", "add", "default", "via", prefix6+"1", "dev", pod),
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w, %s", command, err, out)
		}
	}
	_, err = os.Stdout.Write(config.PrevResult)
	return err
}
