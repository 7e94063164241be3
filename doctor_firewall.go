// doctor_firewall.go is what berth doctor reads of the machine's firewall: rules, as nft and
// iptables print them. It is apart from doctor_system.go because it judges texts that other
// programs write, and no state.

package main

import (
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// A firewall is what rules say about ports that come in. Whether they do what they should,
// only a look from outside tells.
type firewall struct {
	chain string                 // which drops what no rule lets in, as nft names it; "": none
	by    string                 // whose rules they are: "ufw", "firewalld", "iptables-legacy"; "": nobody's
	some  bool                   // there are rules that let some senders in, whatever the port
	xt    bool                   // rules have parts that nft does not show
	named map[string][]portRange // by protocol, and "@NAME" of a set
}

// checkFirewall finds what drops all that no rule lets in, and the ports that none names.
func (d *doctor) checkFirewall() {
	if os.Geteuid() != 0 {
		d.unseen("firewall", "the rules of the firewall", fs.ErrPermission)
		return
	}
	w := firewall{named: map[string][]portRange{}}
	rules, err := d.program("nft", "-n", "list", "ruleset")
	w.read(rules)
	if w.xt || err != nil { // the tables of nftables, too, with all that they have
		text, err2 := d.program("iptables-nft", "-S")
		w.read(text)
		if err2 == nil {
			err = nil
		}
	}
	// Where the old tables are not in use, a look at them makes them.
	if hasText("\n"+fileText("/proc/net/ip_tables_names")+"\n", "\nfilter\n") {
		if text, err2 := d.program("iptables-legacy", "-S"); err2 == nil {
			was := w.chain
			if w.read(text); w.chain != was {
				w.by = "iptables-legacy"
			}
			err = nil
		}
	}
	if err != nil {
		d.say(levelNote, "firewall|neither nft nor iptables tells its rules; what gets through is seen from outside|berth doctor USER@HOST   on another machine")
		return
	}
	missing := map[string][]string{}
	want := func(proto, ports string, low, high int) {
		if low > 0 && !w.names(proto, low, high) && !inList(missing[proto], ports) {
			missing[proto] = append(missing[proto], ports)
		}
	}
	for _, kind := range socketKinds() {
		for _, text := range kind.addrs(&d.cfg.Listen) {
			host, port, _ := splitListen(text)
			if a, err := netip.ParseAddr(host); kind.name != "http" && host != "localhost" && (err != nil || !a.IsLoopback()) {
				want(kind.network, itoa(port), port, port)
			}
		}
	}
	if p := d.cfg.Passive.Ports; !d.wrong.has("passive") {
		want("tcp", p.String(), int(p.Low), int(p.High))
	}
	if w.chain == "" || len(missing["tcp"])+len(missing["udp"]) == 0 {
		d.say(levelOK, "firewall|no rule of nftables or iptables keeps berth's ports closed")
		return
	}
	l, more := levelWarn, ""
	if w.some {
		l, more = levelNote, "; some senders are let in whatever the port is"
	}
	for _, proto := range []string{"tcp", "udp"} {
		if ports := missing[proto]; len(ports) > 0 {
			args := []string{w.chain, proto, strings.Join(ports, ", "), more}
			d.say(l, "firewall|the chain $1 drops what no rule lets in, and no rule names $2 $3$4"+w.opens(proto, ports), args...)
		}
	}
}

// opens is the remedies that let ports in, in the words of whose rules they are.
func (w *firewall) opens(proto string, ports []string) (remedies string) {
	if w.by == "" {
		return "|nft insert rule $1 $2 dport '{ $3 }' accept|$2 dport { $3 } accept   in that chain in /etc/nftables.conf too, for the next start"
	}
	for _, p := range ports {
		colon := strings.ReplaceAll(p, "-", ":")
		switch w.by {
		case "ufw":
			remedies += "|ufw allow " + colon + "/" + proto
		case "firewalld":
			remedies += "|firewall-cmd --permanent --add-port=" + p + "/" + proto
		default:
			remedies += "|" + w.by + " -I INPUT -p " + proto + " --dport " + colon + " -j ACCEPT"
		}
	}
	if w.by == "firewalld" {
		remedies += "|firewall-cmd --reload"
	}
	return remedies
}

// names tells whether rules name all ports of a range.
func (w *firewall) names(proto string, low, high int) bool {
	for more := true; more && low <= high; {
		more = false
		for _, r := range w.named[proto] {
			if int(r.Low) <= low && low <= int(r.High) {
				low, more = int(r.High)+1, true
			}
		}
	}
	return low > high
}

var ruleSpaces = newReplacer("{", " { ", "}", " } ", ",", " ", ";", " ")

// read takes rules as nft list ruleset and iptables -S print them. Sets stand before the
// chains that name them.
func (w *firewall) read(text string) {
	table, name, kind, input := "", "", "", false
	for _, line := range splitText(text, "\n") {
		line, _, _ = cutText(line, ` comment "`)
		f := strings.Fields(ruleSpaces.Replace(line))
		for len(f) < 3 {
			f = append(f, "")
		}
		line = " " + strings.Join(f, " ") + " "
		switch f[0] {
		case "":
		case "table":
			if table = f[1] + " " + f[2]; f[2] == "firewalld" {
				w.by = f[2]
			}
		case "chain", "set", "map", "-N":
			if kind, name, input = f[0], f[1], false; beginsWith(name, "ufw-") {
				w.by = "ufw"
			}
		case "elements":
			w.ports("@"+name, f, true)
		case "type":
			if input = hasText(line, " hook input "); input && hasText(line, " policy drop ") {
				w.chain = table + " " + name
			}
		case "-P":
			if hasText(line, " INPUT DROP ") {
				w.chain = "ip filter INPUT"
			}
		default:
			switch closes := w.rule(f, line); {
			case kind == "set": // its elements go on
				w.ports("@"+name, f, true)
			case closes && beginsWith(line, " -A INPUT -j "):
				w.chain = "ip filter INPUT"
			case closes && input && inList([]string{"counter", "log", "drop", "reject"}, f[0]):
				w.chain = table + " " + name
			}
		}
	}
}

// rule reads one; true if it drops something, whatever the port.
func (w *firewall) rule(f []string, line string) (drops bool) {
	w.xt = w.xt || hasText(line, " xt")
	verdict := func(word string) bool { return isText(word, "drop") || isText(word, "reject") }
	at, proto := -1, ""
	for i, word := range f {
		switch word {
		case "dport", "--dport", "--dports":
			at = i + 1
			if word == "dport" && i > 0 {
				proto = f[i-1]
			}
		case "-p":
			proto = f[min(i+1, len(f)-1)]
		case "drop", "reject", "DROP", "REJECT":
			drops = drops || at < 0 || f[at] != "vmap"
		case "!", "!=":
			return false
		}
		if at == len(f) {
			return false
		}
	}
	switch {
	case drops:
	case at >= 0 && f[at] == "vmap":
		for i, word := range f[:len(f)-2] {
			if f[i+1] == ":" && verdict(f[i+2]) {
				word = ""
			}
			w.ports(proto, []string{word}, true)
		}
	case at >= 0:
		w.ports(proto, f[at:], f[at] == "{")
	default:
		for _, word := range []string{" saddr ", " iif", " -s ", " -i "} {
			w.some = w.some || hasText(line, word) && (hasText(line, " accept ") || hasText(line, " ACCEPT ")) &&
				!hasText(line, "lo ") && !hasText(line, `"lo"`) && !hasText(line, "proto") && !hasText(line, "port") && !hasText(line, "ct ") && !hasText(line, " -p ") && !hasText(line, " -m ")
		}
	}
	return drops && at < 0
}

// ports takes ports, ranges and names of sets, up to what is none of these, or of a list to
// its end; "th" is whatever carries ports, and a set is kept by its name.
func (w *firewall) ports(proto string, words []string, list bool) {
	for _, word := range words {
		low, high, two := cutText(strings.ReplaceAll(word, ":", "-"), "-")
		if !two {
			high = low
		}
		r := portRange{uint16(min(atoi(low), 65535)), uint16(min(atoi(high), 65535))}
		all := w.named[word]
		if r.Low > 0 && r.Low <= r.High {
			all = []portRange{r}
		}
		switch {
		case word == "}", len(all) == 0 && !list:
			return
		case proto == "th":
			w.named["udp"] = append(w.named["udp"], all...)
			w.named["tcp"] = append(w.named["tcp"], all...)
		default:
			w.named[proto] = append(w.named[proto], all...)
		}
	}
}
