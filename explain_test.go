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
	"time"
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

// TestExplainAsksTheDaemon: a ban, and sessions that are there, are in no file.
func TestExplainAsksTheDaemon(t *testing.T) {
	socket := filepath.Join(shortDir(t), "s")
	file, b := writeConfig(t, fmt.Sprintf("log.format = \"json\"\nlimits = { login_failures = 2, sessions_per_address = 2 }\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [%q], proxy_from = [\"127.0.0.1\"] }\n", socket))
	b.user(t, "ann", "tls = \"optional\"\nsessions = 1\n")
	p := serveBerth(t, file, nil)
	from := func(addr string, say ...string) {
		t.Helper()
		c := p.dial("control")
		c.send("PROXY TCP4 " + addr + " 192.0.2.1 40000 2121\r\n")
		c.want("220 *")
		for i := 0; i+1 < len(say); i += 2 {
			c.cmd(say[i], say[i+1])
		}
	}
	explain := func(from string, code int, want ...string) {
		t.Helper()
		got, out, errs := cli(t, "check", "--explain", "user=ann", "from="+from, "--config", file)
		if got != code || errs != "" {
			t.Errorf("from %s: exit %d, %s", from, got, errs)
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("from %s: no %q in\n%s", from, w, out)
			}
		}
	}
	explain("192.0.2.9", exitOK, "daemon       Nothing bars him now: 0 sessions of his, 0 from there, 0 in all; 0 failed logins from there, and one more is answered after 1s. It runs with "+file+". [listen.local, "+file)
	for range 2 {
		c := p.dial("control")
		c.send("PROXY TCP4 192.0.2.9 192.0.2.1 40000 2121\r\nUSER ann\r\nPASS wrong\r\n")
		p.logged("login failed")
	}
	p.logged("address banned")
	explain("192.0.2.9", exitFailed, "\nrefused: the daemon says: Too many failed logins from your address; try again in ")
	explain("192.0.2.8", exitOK, "0 failed logins from there, and one more is answered after 4s")
	from("192.0.2.7")
	from("192.0.2.7", "USER ann", "331 *", "PASS secret", "230 *")
	explain("192.0.2.7", exitFailed, "refused: the daemon says: Too many sessions of that user: at most 1. It runs with ")
	b.user(t, "ann", "tls = \"optional\"\n")
	explain("192.0.2.7", exitFailed, "refused: the daemon says: Too many connections from your address: at most 2. It runs with ")
	explain("192.0.2.6", exitOK, ": 1 sessions of his, 0 from there, ")
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(file, later, later); err != nil {
		t.Fatal(err)
	}
	explain("192.0.2.5", exitOK, "Its configuration has changed since it was read: berth reload. ")
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
		fmt.Sprintf("[tls, network's profile camera, %s:%d]", file, lineOf(config, "profiles.for")), "ann.toml:4]", "rotate, when it is full", "up: /bin/true [commands.up, " + file, "share        none [shares, default]",
		"camera from 10.0.9.0/24 sets tls optional; permissions write,list,rename,mkdir; sessions 50; quirks no-epsv,keep-open,site-umask [profiles.for[0], " + file,
		"not read, delete [permissions, network's profile camera",
		"not asked about bans and sessions: ", "no-epsv, keep-open, site-umask", "ann may log in from 10.0.9.4 with TLS or in clear text\n",
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
	for args, want := range map[string]string{
		"ann": explainForm, "user=ann,from=10.0.9.4": explainForm, "user=ann\tfrom=": explainForm, "user=ann\tuser=bob": "user= is there twice", "from=local\tfrom=::1": "from= is there twice",
		"user=ann\tfrom=10.0.9.0/24": "is no address: write one", "user=ann\tfrom=box": "is no address: write one",
	} {
		if code, _, errs := cli(t, append([]string{"check", "--explain", "--config", file}, strings.Split(args, "\t")...)...); code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("--explain %s: exit %d, %s", args, code, errs)
		}
	}
	for name, want := range map[string]string{"../ann": "is no user name", "zzzzzzzz": "there is no user \"zzzzzzzz\" in " + filepath.Join(b.dir, "users.d") + "\n"} {
		if code, out, _ := cli(t, "check", "--explain", "user="+name, "--config", file); code != exitFailed || !strings.Contains(out, want) {
			t.Errorf("%s: exit %d, no %s in\n%s", name, code, want, out)
		}
	}
	b.user(t, "cam", "\nprofile = \"camera\"\nsessions = 3\n")
	if _, out, _ := cli(t, "check", "--explain", "user=cam", "--config", file); !strings.Contains(out, "sets tls optional; permissions write,list,rename,mkdir; when_full rotate; quirks no-epsv,keep-open,site-umask [profile, ") ||
		!strings.Contains(out, "cam.toml:4]\n") || !strings.Contains(out, "[quirks, profile camera, ") || !strings.Contains(out, "rotate, when it is full [when_full, profile camera, ") {
		t.Errorf("the user's profile:\n%s", out)
	}
	b.user(t, "ann", "quirks = [\"no\"]\n")
	if code, _, errs := cli(t, "check", "--explain", "user=ann", "--config", file); code != exitFailed || !strings.Contains(errs, "quirks[0]") {
		t.Errorf("a broken file: exit %d, %s", code, errs)
	}
}

// TestExplainTellsWhatIsNotSet, so that nobody has to know which line is missing, and whom a
// name may have meant.
func TestExplainTellsWhatIsNotSet(t *testing.T) {
	b := newFTPBox(t, "", "")
	b.user(t, "cam", "profile = \"camera\"\nupload_rate = \"1MiB\"\n")
	for _, tt := range []struct{ user, want string }{
		{"ann", "rate: download_rate: no limit; rate: upload_rate: no limit; quirks: nothing; idle: a session ends after 10m without a command or a transfer"},
		{"cam", "rate: download_rate: no limit; rate: upload_rate: 1MiB a second; quirks: no-epsv, keep-open, site-umask; idle: a session stays, by keep-open"},
		{"anna", `user: there is no user "anna" in ` + b.srv.config().Server.UsersDir + `; did you mean "ann"?`},
		{"somebodyelse", `user: there is no user "somebodyelse" in ` + b.srv.config().Server.UsersDir},
	} {
		e, _ := b.explained(t, tt.user, "10.0.9.4")
		var got []string
		for _, s := range e.Steps {
			if s.Step == "rate" || s.Step == "quirks" || s.Step == "idle" || s.Step == "user" && e.Allowed == false {
				got = append(got, s.Step+": "+s.Text)
			}
		}
		if text := strings.Join(got, "; "); text != tt.want {
			t.Errorf("%s: %s\nwant %s", tt.user, text, tt.want)
		}
	}
}
