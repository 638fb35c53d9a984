package netns

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// nftAttempts bounds the repetitions of what a concurrent change of the ruleset
// interrupted.
const nftAttempts = 100

// readRuleset calls read until the ruleset did not change during the call. Listing
// chains and rules takes several netlink messages, and the kernel may return a part of
// either version if a firewall is reloaded between them. After nftAttempts the last
// result counts.
func readRuleset(read func(*nftables.Conn) error) error {
	var err error
	for range nftAttempts {
		before, gerr := generation()
		if gerr != nil {
			return gerr
		}
		conn, cerr := nftables.New()
		if cerr != nil {
			return fmt.Errorf("open nftables: %w", cerr)
		}
		err = read(conn)
		after, gerr := generation()
		if gerr != nil {
			return gerr
		}
		if after == before {
			break
		}
	}
	return err
}

// generation returns the number of the ruleset in the thread's namespace, which each
// transaction increments (NFT_MSG_GETGEN in linux/netfilter/nf_tables.h).
func generation() (uint32, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN)
	if err != nil {
		return 0, fmt.Errorf("read nftables generation: %w", err)
	}
	for _, msg := range msgs {
		if len(msg) < nl.SizeofNfgenmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(msg[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, fmt.Errorf("parse nftables generation: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) == 4 {
				return binary.BigEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, errors.New("read nftables generation: no answer")
}

// tableShape reads back the chains of bottle's table in the thread's namespace. It
// returns nil if there is no table.
func tableShape() (shape map[string]chainShape, err error) {
	err = readRuleset(func(conn *nftables.Conn) error {
		shape = nil
		chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
		if err != nil {
			return fmt.Errorf("list nftables chains: %w", err)
		}
		for _, c := range chains {
			if c.Table.Name != tableName {
				continue
			}
			rules, err := conn.GetRules(c.Table, c)
			if err != nil {
				return fmt.Errorf("read nftables chain %s: %w", c.Name, err)
			}
			if shape == nil {
				shape = map[string]chainShape{}
			}
			shape[c.Name] = chainShape{rules: len(rules), drop: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop}
		}
		return nil
	})
	return shape, err
}
