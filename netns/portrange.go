package netns

import (
	"fmt"
	"slices"
)

// PortRange is an inclusive range of TCP ports. First must not be greater than Last.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// Ports converts single ports to ranges.
func Ports(ports ...uint16) []PortRange {
	out := make([]PortRange, len(ports))
	for i, p := range ports {
		out[i] = PortRange{p, p}
	}
	return out
}

func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// mergePorts sorts ranges and joins those that overlap or adjoin: the kernel refuses a
// set with overlapping ranges.
func mergePorts(ranges []PortRange) ([]PortRange, error) {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	var out []PortRange
	for _, r := range sorted {
		if r.First > r.Last {
			return nil, fmt.Errorf("invalid port range %s", r)
		}
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out, nil
}
