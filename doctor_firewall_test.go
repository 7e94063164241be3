// These tests are about what doctor says of firewalls and NAT: on the box, by the rules that
// the real programs have made, and from afar, by packets that the kernel drops. They run in a
// network of their own, where only loopback is, as root.

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ownNetwork tells whether the test is in a network of its own, and if not runs it again in
// one, as a process that this one waits for.
func ownNetwork(t *testing.T) bool {
	t.Helper()
	const mark = "BERTH_TEST_OWN_NETWORK"
	if os.Getenv(mark) != "" {
		script(t, "ip link set lo up")
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("only root can have a network of his own")
	}
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), mark+"=1", noRaceSleep)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("in a network of its own: %v\n%s", err, out)
	}
	return false
}

func script(t *testing.T, text string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", text).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", text, err, out)
	}
}

// Rules by each program that makes them: what they leave out is found, and the remedies,
// done to the letter, let it in.
func TestDoctorReadsTheFirewall(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	file, _ := writeConfig(t, "listen = { control = [\":28121\"], datagram = [\":28121\"], http = [\"127.0.0.1:0\"], local = [] }\npassive.ports = \"28200-28209\"\n")
	const drops = "nft add table inet f; nft add chain inet f in '{ type filter hook input priority 0; policy drop; }'; nft add rule inet f in iif lo accept\n"
	for _, c := range []struct {
		name, rules string
		finds       []string // texts; none: all is well
		level       string
		flush       string
	}{
		{name: "no rules"},
		{name: "drop, and nothing let in", rules: drops, level: "warn",
			finds: []string{"no rule names tcp 28121, 28200-28209", "no rule names udp 28121"}},
		{name: "all let in, in all ways", rules: drops + `nft add set inet f s '{ type inet_service; flags interval; elements = { 28200-28204, 1 }; }'
			nft add rule inet f in tcp dport @s accept
			nft add rule inet f in ip saddr . tcp dport '{ 10.0.0.1 . 28205, 10.0.0.1 . 28206 }' accept
			nft add rule inet f in tcp dport vmap '{ 28207 : accept, 28208 : accept, 28209 : accept }'
			nft add rule inet f in meta l4proto '{ tcp, udp }' th dport 28121 accept`},
		{name: "one protocol only, and one port short", rules: drops + "nft add rule inet f in tcp dport '{ 28121, 28200-28208 }' accept", level: "warn",
			finds: []string{"no rule names tcp 28200-28209", "no rule names udp 28121"}},
		{name: "named to be dropped", rules: drops + "nft add rule inet f in tcp dport 28000-29000 drop; nft add rule inet f in tcp dport vmap '{ 28121 : drop }'; nft add rule inet f in tcp dport != 5 accept; nft add rule inet f in udp dport 28121 accept",
			level: "warn", finds: []string{"no rule names tcp 28121, 28200-28209"}},
		{name: "the last rule drops", rules: "nft add table inet f; nft add chain inet f in '{ type filter hook input priority 0; }'; nft add rule inet f in iif lo accept; nft add rule inet f in counter reject",
			level: "warn", finds: []string{"inet f in drops what no rule lets in, and no rule names tcp 28121", "no rule names udp 28121"}},
		{name: "rules for what goes out", rules: "nft add table inet f; nft add chain inet f out '{ type filter hook output priority 0; policy drop; }'; nft add rule inet f out oif lo accept"},
		{name: "some senders let in", rules: drops + "nft add rule inet f in ip saddr 10.0.0.0/8 accept", level: "note",
			finds: []string{"tcp 28121, 28200-28209; some senders are let in whatever the port is", "udp 28121; some senders"}},
		{name: "iptables of today", rules: "iptables-nft -A INPUT -i lo -j ACCEPT; iptables-nft -P INPUT DROP; iptables-nft -A INPUT -p udp --dport 28121 -j ACCEPT; iptables-nft -A INPUT -p tcp -m multiport --dports 28121,28200:28209 -j ACCEPT"},
		{name: "iptables of today, a port short", rules: "iptables-nft -A INPUT -i lo -j ACCEPT; iptables-nft -P INPUT DROP; iptables-nft -A INPUT -p udp --dport 28121 -j ACCEPT; iptables-nft -A INPUT -p tcp -m multiport --dports 28121,28200:28208 -j ACCEPT",
			level: "warn", finds: []string{"the chain ip filter INPUT drops what no rule lets in, and no rule names tcp 28200-28209"}},
		{name: "iptables of old", rules: "iptables-legacy -A INPUT -i lo -j ACCEPT; iptables-legacy -A INPUT -p udp --dport 28121 -j ACCEPT; iptables-legacy -A INPUT -j REJECT",
			level: "warn", finds: []string{"no rule names tcp 28121, 28200-28209"}, flush: "iptables-legacy -F"},
	} {
		ok := t.Run(c.name, func(t *testing.T) {
			script(t, c.rules)
			defer func() { script(t, "nft flush ruleset\n"+c.flush) }()
			_, all := examine(t, file)
			if len(c.finds) == 0 {
				if f := the(all, "firewall", ""); f != nil || !is(all, "firewall", "keeps berth's ports closed") {
					t.Fatalf("%+v", f)
				}
				return
			}
			for _, text := range c.finds {
				f := the(all, "firewall", text)
				if f == nil || f.Level != c.level {
					t.Fatalf("%q is not found as a %s: %+v", text, c.level, all[len(all)-2:])
				}
				for _, line := range f.Remedy {
					if !strings.Contains(line, "   in ") {
						script(t, line)
					}
				}
			}
			if _, all = examine(t, file); the(all, "firewall", "") != nil {
				t.Errorf("after the remedies: %+v", the(all, "firewall", ""))
			}
		})
		if !ok {
			break
		}
	}
}

// Whose rules they are decides the words of the remedy.
func TestDoctorFirewallRemedies(t *testing.T) {
	for _, c := range []struct{ rules, want string }{
		{"table ip filter {\n\tchain ufw-user-input {\n\t\ttcp dport 22 accept\n\t}\n}\n", "|ufw allow 2121/tcp|ufw allow 50000:50999/tcp"},
		{"-P INPUT DROP\n-N ufw-user-input\n", "|ufw allow 2121/tcp|ufw allow 50000:50999/tcp"},
		{"table inet firewalld {\n", "|firewall-cmd --permanent --add-port=2121/tcp|firewall-cmd --permanent --add-port=50000-50999/tcp|firewall-cmd --reload"},
	} {
		w := firewall{named: map[string][]portRange{}}
		w.read(c.rules)
		if got := w.opens("tcp", []string{"2121", "50000-50999"}); got != c.want {
			t.Errorf("%s: %q, want %q", c.rules, got, c.want)
		}
	}
}

// Ports that the kernel drops or refuses on the way, and a datagram that is lost.
func TestDoctorFilteredPorts(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	b := newClientBox(t, "passive.ports = \"28210-28219\"\n", "")
	b.datagrams(t)
	script(t, `nft add table inet f; nft add chain inet f in '{ type filter hook input priority 0; }'
		nft add rule inet f in tcp dport 28213-28214 drop; nft add rule inet f in tcp dport 28219 reject with tcp reset; nft add rule inet f in udp dport `+b.port+" drop")
	lossy(t, func() (int, []finding) { return b.far(t, "-p", b.port, b.host) }, func(code int, all []finding) bool {
		for _, c := range []struct{ check, text, remedy string }{
			{"ports", "28213-28214 opened by the box, and filtered: no answer", "nft add rule inet filter input tcp dport 28210-28219 accept   on the box"},
			{"ports", "28219 opened by the box, and refused on the way", "ufw allow 28210:28219/tcp   on the box, or"},
			{"datagram", "no answer by datagram", "ufw allow " + b.port + "/udp   on the box, or"},
		} {
			if f := the(all, c.check, c.text); f == nil || !slices.Contains(f.Remedy, c.remedy) {
				return false
			}
		}
		return is(all, "ports", "28210-28212, 28215-28218 open") && code == exitFailed
	})
	// Without a login it is told by who refuses: a box with nobody at a port says so.
	t.Setenv("BERTH_PASSWORD", "")
	lossy(t, func() (int, []finding) { return b.far(t, "-p", b.port, "--ports", "28210-28219", "127.0.0.1") }, func(_ int, all []finding) bool {
		return the(all, "ports", "28213-28214 filtered: no answer") != nil && the(all, "ports", "28219") == nil
	})
	script(t, "nft flush ruleset; nft add table inet f; nft add chain inet f in '{ type filter hook input priority 0; }'; nft add rule inet f in tcp dport "+b.port+" drop")
	lossy(t, func() (int, []finding) { return b.far(t, "-p", b.port, b.host) }, func(code int, all []finding) bool {
		f := the(all, "reach", "no answer")
		return f != nil && code == exitNoConn && slices.Contains(f.Remedy, "ufw allow "+b.port+"/tcp   on the box, or")
	})
}

// lossy looks at a box on a network that loses things for sure. Doctor need not wait long for them, but a busy machine can
// be as late with an answer: who does not see what he should looks again, and waits longer for what may come.
func lossy(t *testing.T, look func() (int, []finding), good func(code int, all []finding) bool) []finding {
	t.Helper()
	dial, datagram := farDial, datagramWait
	defer func() { farDial, datagramWait = dial, datagram }()
	for farDial, datagramWait = 400*time.Millisecond, 100*time.Millisecond; ; farDial, datagramWait = 3*farDial, 3*datagramWait {
		code, all := look()
		if good(code, all) {
			return all
		}
		if farDial > 3*time.Second {
			t.Fatalf("%d, %+v", code, all)
		}
	}
}

// Behind NAT: the box is reached by an outer address, and PASV tells its inner one, which
// does not lead there. The line that doctor says mends it.
func TestDoctorBehindNAT(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	const outer = "203.0.113.7"
	b := newClientBox(t, "passive.ports = \"28220-28229\"\n", "")
	script(t, `ip addr add 10.99.0.1/32 dev lo; ip route add 203.0.113.0/24 dev lo src 10.99.0.1
		nft add table ip n; nft add chain ip n out '{ type nat hook output priority -100; }'
		nft add rule ip n out ip daddr `+outer+` tcp dport { `+b.port+`, 28220-28229 } dnat to 127.0.0.1
		nft add chain ip n in '{ type filter hook input priority 0; }'
		nft add rule ip n in tcp dport 28220-28229 ct status and dnat == 0 drop`)
	if c, err := net.DialTimeout("tcp", net.JoinHostPort(outer, b.port), farDial); err != nil {
		t.Fatal(err)
	} else {
		c.Close()
	}
	look := func() (int, []finding) { return b.far(t, "--plain", "-p", b.port, "ann@"+outer) }
	b.user(t, "ann", "tls = \"optional\"\n")
	if err := b.srv.reload(); err != nil {
		t.Fatal(err)
	}
	const inner = "PASV tells 127.0.0.1, where no listing comes from (no answer from 127.0.0.1:"
	all := lossy(t, look, func(code int, all []finding) bool {
		f := the(all, "pasv", inner)
		return f != nil && strings.HasSuffix(f.Text, "at "+outer+", where the control connection goes, one does; the box seems to be behind NAT") && code == exitFailed
	})
	f := the(all, "pasv", inner)
	if want := fmt.Sprintf("passive.address = %q   in /etc/berth/berth.toml on the box", outer); f.Remedy[0] != want {
		t.Fatalf("%q, want %q", f.Remedy[0], want)
	}
	b.mend(t, strings.Replace(f.Remedy[0], defaultConfigPath+" on the box", b.srv.configPath, 1))
	lossy(t, look, func(_ int, all []finding) bool { // each port opened before one comes again, which takes no pause between them
		return the(all, "pasv", "") == nil && is(all, "pasv", "PASV tells "+outer) && is(all, "ports", "28220-28229 open")
	})
	// The router forwards one of the ports: the others are what is missing.
	script(t, `nft flush chain ip n out; nft add rule ip n out ip daddr `+outer+` tcp dport { `+b.port+`, 28220 } dnat to 127.0.0.1`)
	lossy(t, look, func(code int, all []finding) bool {
		f := the(all, "ports", "filtered")
		return f != nil && is(all, "ports", "28220 ") && code == exitFailed && slices.Contains(f.Remedy, "forward tcp 28220-28229 to the box   in the router in front of it, if there is one")
	})
}
