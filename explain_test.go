package main

// berth check --explain against the truth: each user, address and configuration is asked
// of it, and then tried with a session, in clear text and under TLS.

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// explained is what --explain --json says, and its exit code.
func (b *ftpBox) explained(t *testing.T, user, from string) (e explanation, code int) {
	t.Helper()
	code, out, errs := cli(t, "check", "--explain", "--json", "user="+user, "from="+from, "--config", b.srv.configPath)
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		t.Fatalf("user=%s from=%s: %v: %s%s", user, from, err, out, errs)
	}
	return e, code
}

// lets tells whether a session from there logs in with the password.
func (b *ftpBox) lets(t *testing.T, user string, peer netip.Addr, secure bool) bool {
	t.Helper()
	c := b.dialFrom(t, peer, boxLocal, "control")
	defer func() {
		c.bare.Close()
		<-c.over
	}()
	if code, _ := c.reply(); code != codeReady {
		return false
	}
	if secure {
		c.cmd("AUTH TLS", "234 *")
		c.startTLS(clientTLS())
	}
	c.send("USER " + user + "\r\n")
	if code, _ := c.reply(); code != codeNeedPassword {
		return false
	}
	c.send("PASS secret\r\n")
	code, _ := c.reply()
	return code == codeLoggedIn
}

func TestExplainSaysWhatASessionGets(t *testing.T) {
	users := map[string]string{
		"plain": "", "optional": "tls = \"optional\"\n", "always": "tls = \"always\"\n", "camera": "profile = \"camera\"\n",
		"strict": "profile = \"strict\"\n", "mixed": "profile = \"strict\"\ntls = \"optional\"\n", "off": "disabled = true\n",
		"bound": "allow_from = [\"10.0.9.0/24\", \"::1\"]\n", "locked": "password = \"!\"\n", "nohome": "home = \"/etc/passwd/x\"\n",
	}
	peers := []string{"127.0.0.1", "10.0.9.4", "10.0.8.4", "192.0.2.1", "2001:db8::1"}
	configs := []string{
		"", "tls.require = \"always\"\n", "tls.require = \"none\"\n",
		"filter.deny_from = [\"10.0.9.0/24\"]\n", "filter.allow_from = [\"10.0.0.0/8\", \"127.0.0.0/8\"]\nfilter.deny_from = [\"10.0.8.4\"]\n",
		fmt.Sprintf(vlanProfile, "camera"),
		"profiles.for = [{ network = \"0.0.0.0/0\", profile = \"strict\" }, { network = \"10.0.9.4\", profile = \"scanner\" }]\n",
	}
	tried, refused := 0, 0
	for _, config := range configs {
		synctest.Test(t, func(t *testing.T) {
			b := newFTPBox(t, "limits.login_failures = 1000\n"+config, "")
			b.srv.auth.dummy, _ = parsePassword(testHash) // what it computes for who gets nowhere: else 20 ms each
			for name, text := range users {
				if name == "locked" {
					if err := os.WriteFile(filepath.Join(b.dir, "users.d", name+".toml"), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
					continue
				}
				b.user(t, name, text)
			}
			for _, name := range append([]string{"nobody"}, slicesOf(users)...) {
				for _, from := range peers {
					peer := netip.MustParseAddr(from)
					e, code := b.explained(t, name, from)
					clear, secure := b.lets(t, name, peer, false), false
					if e.TLS || clear || tried%3 == 0 { // a handshake costs a millisecond
						secure = b.lets(t, name, peer, true)
					}
					if e.Clear != clear || e.TLS != secure || e.Allowed != (clear || secure) || e.Allowed != (code == exitOK) {
						t.Errorf("%q: %s from %s: %s (exit %d); a session gets in with a password in clear text: %v, under TLS: %v", config, name, from, e.Verdict, code, clear, secure)
					}
					if tried++; !e.Allowed {
						refused++
					}
				}
			}
		})
	}
	if refused < tried/5 || refused > tried*4/5 {
		t.Errorf("%d of %d are refused; that is no matrix", refused, tried)
	}
}

func slicesOf(m map[string]string) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// TestExplainNamesKeyAndLine: what decides can be found and changed.
func TestExplainNamesKeyAndLine(t *testing.T) {
	file, b := writeConfig(t, "filter.deny_from = [\"192.0.2.0/24\"]\ncommands.up.run = [\"/bin/true\"]\n"+fmt.Sprintf(vlanProfile, "camera"))
	b.user(t, "ann", "commands = [\"up\"]\nquota_bytes = \"1GiB\"\nwhen_full = \"rotate\"\nallow_from = [\"10.0.0.0/8\"]\nuid = 4242\n")
	explain := func(from string, want int) string {
		t.Helper()
		code, out, errs := cli(t, "check", "--explain", "user=ann", "from="+from, "--config", file)
		if code != want || errs != "" {
			t.Errorf("from %s: exit %d, %s", from, code, errs)
		}
		return out
	}
	config, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	denied := fmt.Sprintf("[filter.deny_from[0], %s:%d]", file, lineOf(config, "filter.deny_from"))
	if out := explain("192.0.2.9", 1); !strings.Contains(out, denied) || !strings.Contains(out, "refused: filter.deny_from does not let 192.0.2.9 connect\n") {
		t.Errorf("want %s in\n%s", denied, out)
	}
	out := explain("10.0.9.4", 0)
	for _, want := range []string{
		"[tls, network's profile camera]", "ann.toml:4]", "rotate, when it is full", "up: /bin/true [commands.up, " + file, "share        none [shares, default]",
		"camera sets tls, permissions, sessions, quirks", "no-epsv, keep-open, site-umask", "ann may log in from 10.0.9.4 with TLS or in clear text\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("want %q in\n%s", want, out)
		}
	}
	if out := explain("local", 1); !strings.Contains(out, "without a password for uid 4242") || !strings.Contains(out, "refused: allow_from of the user does not have local\n") {
		t.Errorf("the local socket:\n%s", out)
	}
	if code, _, errs := cli(t, "check", "--explain", "--config", file); code != exitUsage || !strings.Contains(errs, explainForm) {
		t.Errorf("--explain alone: exit %d, %s", code, errs)
	}
	for _, arg := range []string{"ann", "user=ann,from=10.0.9.4", "user=ann from=10.0.9.4"} {
		if code, _, errs := cli(t, "check", "--explain", arg, "--config", file); code != exitUsage || !strings.Contains(errs, explainForm) {
			t.Errorf("--explain %s: exit %d, %s", arg, code, errs)
		}
	}
	b.user(t, "ann", "quirks = [\"no\"]\n")
	if code, _, errs := cli(t, "check", "--explain", "user=ann", "--config", file); code != exitFailed || !strings.Contains(errs, "quirks[0]") {
		t.Errorf("a broken file: exit %d, %s", code, errs)
	}
}
