package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the name of bottle's nftables table, in the host's namespace and in
// each proxy's; its family is inet.
const tableName = "bottle"

// Offsets in an IPv4 header (RFC 791) and in a TCP or UDP header.
const (
	offsetSource = 12
	offsetDest   = 16
	offsetSport  = 0
	offsetDport  = 2
)

// Registers of nftables (linux/netfilter/nf_tables.h): reg1 and reg2, which follows it,
// are 16 bytes wide; reg1b is the second 4 bytes of reg1.
const (
	reg1  = unix.NFT_REG_1
	reg2  = unix.NFT_REG_2
	reg1b = unix.NFT_REG32_01
)

// ruleset is a table being built. Nothing is sent to the kernel before commit,
// which replaces the table atomically: there is no moment without it.
type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
	// shape is what reading the table back must return.
	shape map[string]chainShape
	err   error
}

// chainShape is the part of a chain that is compared when it is read back.
type chainShape struct {
	rules int
	drop  bool // its policy
}

// newRuleset starts a replacement of the table in the thread's namespace.
func newRuleset() (*ruleset, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	conn.AddTable(t) // deleting a table that does not exist would fail
	conn.DelTable(t)
	return &ruleset{conn: conn, table: conn.AddTable(t), shape: map[string]chainShape{}}, nil
}

func (r *ruleset) commit() error {
	if r.err != nil {
		return fmt.Errorf("build nftables table inet %s: %w", tableName, r.err)
	}
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("write nftables table inet %s: %w", tableName, err)
	}
	return nil
}

// chain adds a base chain.
func (r *ruleset) chain(name string, hook *nftables.ChainHook, drop bool) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	if drop {
		policy = nftables.ChainPolicyDrop
	}
	r.shape[name] = chainShape{drop: drop}
	return r.conn.AddChain(&nftables.Chain{
		Name: name, Table: r.table, Type: nftables.ChainTypeFilter,
		Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
}

// rule adds a rule: conditions that must all match, and a verdict.
func (r *ruleset) rule(c *nftables.Chain, parts ...[]expr.Any) {
	shape := r.shape[c.Name]
	shape.rules++
	r.shape[c.Name] = shape
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: slices.Concat(parts...)})
}

// pairs adds a set of source and destination addresses.
func (r *ruleset) pairs(name string, elems []addrPair) *nftables.Set {
	key, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	if err != nil {
		r.err = errors.Join(r.err, err)
	}
	var out []nftables.SetElement
	for _, e := range elems {
		out = append(out, nftables.SetElement{Key: slices.Concat(e.from.AsSlice(), e.to.AsSlice())})
	}
	return r.set(&nftables.Set{Name: name, KeyType: key, Concatenation: true}, out)
}

// ranges adds a set of address ranges, which must not overlap.
func (r *ruleset) ranges(name string, ranges []addrRange) *nftables.Set {
	var out []nftables.SetElement
	for _, a := range ranges {
		out = append(out, nftables.SetElement{Key: a.first.AsSlice()})
		// A range that ends at 255.255.255.255 has no end element.
		if end := a.last.Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return r.set(&nftables.Set{Name: name, KeyType: nftables.TypeIPAddr, Interval: true}, out)
}

// names adds a set of link names. The links need not exist.
func (r *ruleset) names(name string, links []string) *nftables.Set {
	var out []nftables.SetElement
	for _, l := range links {
		out = append(out, nftables.SetElement{Key: linkName(l)})
	}
	return r.set(&nftables.Set{Name: name, KeyType: nftables.TypeIFName}, out)
}

// sameLinks adds a set of pairs, each of which is twice the name of the same link.
func (r *ruleset) sameLinks(name string, links []string) *nftables.Set {
	key, err := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeIFName)
	if err != nil {
		r.err = errors.Join(r.err, err)
	}
	var out []nftables.SetElement
	for _, l := range links {
		out = append(out, nftables.SetElement{Key: slices.Concat(linkName(l), linkName(l))})
	}
	return r.set(&nftables.Set{Name: name, KeyType: key, Concatenation: true}, out)
}

func (r *ruleset) set(s *nftables.Set, elems []nftables.SetElement) *nftables.Set {
	s.Table = r.table
	r.err = errors.Join(r.err, r.conn.AddSet(s, elems))
	return s
}

// addrPair is an element of a set made by pairs; both addresses are IPv4.
type addrPair struct{ from, to netip.Addr }

// The following functions return parts of rules. No part reads a register that
// another part set.

func equal(data []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: data}
}

func linkName(name string) []byte {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return data
}

func link(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg1}, equal(linkName(name))}
}

func linkIn(key expr.MetaKey, s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg1}, lookup(s)}
}

func fromIn(s *nftables.Set) []expr.Any { return linkIn(expr.MetaKeyIIFNAME, s) }
func toIn(s *nftables.Set) []expr.Any   { return linkIn(expr.MetaKeyOIFNAME, s) }

// sameLinkIn matches packets whose input and output link are a pair in the set.
func sameLinkIn(s *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg2}, lookup(s),
	}
}

func from(name string) []expr.Any { return link(expr.MetaKeyIIFNAME, name) }
func to(name string) []expr.Any   { return link(expr.MetaKeyOIFNAME, name) }

func notTo(name string) []expr.Any {
	out := to(name)
	out[1].(*expr.Cmp).Op = expr.CmpOpNeq
	return out
}

// ipv4 must precede every part that reads the IPv4 header: the table sees both
// families.
func ipv4() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1}, equal([]byte{unix.NFPROTO_IPV4})}
}

func notIPv4() []expr.Any {
	out := ipv4()
	out[1].(*expr.Cmp).Op = expr.CmpOpNeq
	return out
}

func address(offset uint32, reg uint32) *expr.Payload {
	return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4, DestRegister: reg}
}

func source(a netip.Addr) []expr.Any {
	return []expr.Any{address(offsetSource, reg1), equal(a.AsSlice())}
}

func dest(a netip.Addr) []expr.Any {
	return []expr.Any{address(offsetDest, reg1), equal(a.AsSlice())}
}

// sourceIn and sourceNotIn compare the source address with a prefix.
func sourceIn(p netip.Prefix) []expr.Any { return sourcePrefix(p, expr.CmpOpEq) }

func sourceNotIn(p netip.Prefix) []expr.Any { return sourcePrefix(p, expr.CmpOpNeq) }

func sourcePrefix(p netip.Prefix, op expr.CmpOp) []expr.Any {
	mask := make([]byte, 4)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		address(offsetSource, reg1),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg1, Data: p.Masked().Addr().AsSlice()},
	}
}

func destIn(s *nftables.Set) []expr.Any {
	return []expr.Any{address(offsetDest, reg1), lookup(s)}
}

func pairIn(s *nftables.Set) []expr.Any {
	return []expr.Any{address(offsetSource, reg1), address(offsetDest, reg1b), lookup(s)}
}

func lookup(s *nftables.Set) *expr.Lookup {
	return &expr.Lookup{SourceRegister: reg1, SetName: s.Name, SetID: s.ID}
}

func port(proto byte, offset uint32, n uint16) []expr.Any {
	return slices.Concat(protocol(proto), []expr.Any{
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2, DestRegister: reg1},
		equal(binaryutil.BigEndian.PutUint16(n)),
	})
}

func protocol(proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, equal([]byte{proto})}
}

// replies matches packets of, or related to, an established connection.
func replies() []expr.Any {
	return conntrack(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// redirected matches packets of a connection whose destination the host changed
// (IPS_DST_NAT in linux/netfilter/nf_conntrack_common.h).
func redirected() []expr.Any { return conntrack(expr.CtKeySTATUS, 1<<5) }

// conntrack matches packets for which one of the bits is set.
func conntrack(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

// ownedByRoot matches packets of sockets that a process of user 0 opened. The id is
// that of the namespace's owner, which is the initial user namespace.
func ownedBy(uid uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: reg1}, equal(binaryutil.NativeEndian.PutUint32(uid))}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }
