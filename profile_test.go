package main

// Profiles and quirks: that each quirk does what its line says and nothing without it,
// that a key has its value from where it should, that what a network's profile allows
// holds there alone, and that README.md says the same.

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	vlanPeer  = netip.MustParseAddr("10.0.9.4")
	otherPeer = netip.MustParseAddr("10.0.8.4")
	boxLocal  = netip.MustParseAddr("10.0.0.1")
)

const vlanProfile = "profiles.for = [{ network = \"10.0.9.0/24\", profile = %q }]\n"

// features is what FEAT lists.
func (f *ftpClient) features() string {
	f.t.Helper()
	f.send("FEAT\r\n")
	_, text := f.reply()
	return text
}

func TestEachQuirkActsOnlyWhereItIsSet(t *testing.T) {
	played := map[string]bool{}
	// play runs the same with and without the quirk; what is wanted is for without, with.
	play := func(word string, test func(t *testing.T, b *ftpBox, with bool)) {
		played[word] = true
		for _, with := range []bool{false, true} {
			user := ""
			if with {
				user = fmt.Sprintf("quirks = [%q]\n", word)
			}
			t.Run(fmt.Sprintf("%s %v", word, with), func(t *testing.T) {
				inBox(t, "limits.idle = \"5m\"\n", user, func(t *testing.T, b *ftpBox) { test(t, b, with) })
			})
		}
	}
	pick := func(with bool, without, is string) string {
		if with {
			return is
		}
		return without
	}
	play("no-epsv", func(t *testing.T, b *ftpBox, with bool) {
		c := b.dial(t).login()
		if got := c.features(); strings.Contains(got, "EPSV") == with || strings.Contains(got, "EPRT") == with || !strings.Contains(got, "PASV") {
			t.Errorf("FEAT: %s", got)
		}
		c.cmd("EPSV", pick(with, "229 *", "502 EPSV is not available here*"))
		c.cmd("EPSV ALL", pick(with, "200 *", "502 *"))
		c.cmd("EPRT |1|127.0.0.1|5000|", pick(with, "501 EPSV ALL*", "502 *"))
		six := netip.MustParseAddr("2001:db8::1")
		c = b.dialFrom(t, six, six, "control")
		c.startsTLS()
		c.cmd("USER ann", "331 *")
		c.cmd("PASS secret", "230 *")
		c.cmd("EPSV", "229 *") // there is nothing else
	})
	play("no-active", func(t *testing.T, b *ftpBox, with bool) {
		c := b.dial(t).login()
		if got := c.features(); strings.Contains(got, "EPRT") == with || !strings.Contains(got, "EPSV") {
			t.Errorf("FEAT: %s", got)
		}
		c.cmd("PORT 127,0,0,1,20,0", pick(with, "200 *", "502 *"))
		c.cmd("EPRT |1|127.0.0.1|5000|", pick(with, "200 *", "502 *"))
		c.send("HELP\r\n")
		if _, help := c.reply(); strings.Contains(help, "PORT") == with {
			t.Errorf("HELP: %s", help)
		}
	})
	play("mkd-exists-ok", func(t *testing.T, b *ftpBox, with bool) {
		b.put(t, "file", "x")
		c := b.dial(t).login()
		c.cmd("MKD a", "257 *")
		c.cmd("MKD a", pick(with, "550 *", `257 "/a" is there already.`))
		c.cmd("MKD file", "550 *")
		c.cmd("MKD a/b", "257 *")
	})
	play("backslash", func(t *testing.T, b *ftpBox, with bool) {
		b.put(t, "a/b/f", "x")
		c := b.dial(t).login()
		c.cmd(`CWD \a\b`, pick(with, "550 *", "250 *"))
		c.cmd(`CWD ..\..\..\..`, pick(with, "550 *", "250 Directory is now /"))
		c.cmd(`MKD c\d`, pick(with, "257 *", "550 *")) // a name with it, or no directory c
		c.cmd(`DELE \.berth-x`, pick(with, "550 *", "553 *"))
		c.cmd("EPSV", "229 *")
		d := c.data()
		c.cmd(`NLST a\b`, pick(with, "550 *", "150 *"))
		d.Close()
	})
	play("keep-open", func(t *testing.T, b *ftpBox, with bool) {
		c := b.dial(t).login()
		time.Sleep(time.Hour)
		if with {
			c.cmd("NOOP", "200 *")
		} else {
			c.want("421 Idle*")
		}
	})
	play("ignore-allo", func(t *testing.T, b *ftpBox, with bool) {
		c := b.dial(t).login()
		c.cmd("ALLO 100", "200 *")
		c.cmd("EPSV", "229 *")
		d := c.data()
		c.cmd("STOR f", "150 *")
		d.Write([]byte("ten bytes."))
		d.Close()
		c.want(pick(with, "426 Only 10 of the 100*", "226 *"))
		c.cmd("ALLO", pick(with, "501 *", "200 *"))
	})
	play("hang-up", func(t *testing.T, b *ftpBox, with bool) {
		b.put(t, "f", "old")
		c := b.dial(t).login()
		c.cmd("EPSV", "229 *")
		d := c.data()
		c.cmd("STOR f", "150 *")
		d.Write([]byte("new"))
		c.conn.Close()
		time.Sleep(time.Second)
		d.Close()
		<-c.over
		if got, want := b.content(t, "f"), pick(with, "old", "new"); got != want {
			t.Errorf("the file has %q; want %q", got, want)
		}
		// Cut off is cut off.
		c = b.dial(t).login()
		c.cmd("EPSV", "229 *")
		d = c.data()
		c.cmd("STOR f", "150 *")
		d.Write([]byte("half"))
		time.Sleep(time.Second)
		d.shut(true)
		c.want("426 *")
		if got, want := b.content(t, "f"), pick(with, "old", "new"); got != want {
			t.Errorf("after a reset the file has %q; want %q", got, want)
		}
	})
	play("site-umask", func(t *testing.T, b *ftpBox, with bool) {
		c := b.dial(t).login()
		c.cmd("SITE UMASK 022", pick(with, "504 *", "200 *"))
		c.send("SITE HELP\r\n")
		if _, help := c.reply(); strings.Contains(help, "UMASK") != with {
			t.Errorf("SITE HELP: %s", help)
		}
	})
	for _, q := range quirkTable {
		if !played[q.word] {
			t.Errorf("%s is not tried", q.word)
		}
	}
}

// startsTLS is AUTH TLS from the greeting on.
func (f *ftpClient) startsTLS() {
	f.t.Helper()
	f.want("220 *")
	f.cmd("AUTH TLS", "234 *")
	f.startTLS(clientTLS())
}

func TestIdleZeroIsForEver(t *testing.T) {
	inBox(t, "limits.idle = \"0\"\n", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		time.Sleep(time.Hour)
		c.cmd("NOOP", "200 *")
	})
}

// TestKeyIsFromFileThenProfileThenNetworkThenDefault is the whole order, for one key of
// each kind.
func TestKeyIsFromFileThenProfileThenNetworkThenDefault(t *testing.T) {
	camera := profilesConfig{For: []profileFor{{network{netip.MustParsePrefix("10.0.0.0/8")}, "strict"}, {network{netip.MustParsePrefix("10.0.9.0/24")}, "camera"}}}
	for _, tt := range []struct {
		file string
		peer netip.Addr
		want string // tls when_full sessions permissions quirks, and where tls is from
	}{
		{"", otherLoopback, "required reject 10 read,write,delete,list,rename,mkdir  default"},
		{"", otherPeer, "always reject 10 read,write,delete,list,rename,mkdir no-active network's profile strict"},
		{"", vlanPeer, "optional reject 50 write,list,rename,mkdir no-epsv,keep-open,site-umask network's profile camera"},
		{"tls = \"required\"\n", vlanPeer, "required reject 50 write,list,rename,mkdir no-epsv,keep-open,site-umask file"},
		{"quirks = []\nsessions = 3\n", vlanPeer, "optional reject 3 write,list,rename,mkdir  network's profile camera"},
		{"profile = \"camera\"\n", otherLoopback, "optional rotate 50 write,list,rename,mkdir no-epsv,keep-open,site-umask profile camera"},
		{"profile = \"scanner\"\n", vlanPeer, "optional reject 50 write,list,mkdir mkd-exists-ok,backslash,site-umask profile scanner"},
		{"profile = \"strict\"\n", vlanPeer, "always reject 50 write,list,rename,mkdir no-active profile strict"},
		{"profile = \"camera\"\nwhen_full = \"reject\"\npermissions = [\"read\"]\n", otherPeer, "optional reject 50 read no-epsv,keep-open,site-umask profile camera"},
	} {
		base, errs := parseUserFile("ann.toml", "ann", []byte(tt.file), testUsersDir, testStateDir)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		u := camera.under(base, tt.peer)
		got := fmt.Sprintf("%s %s %d %s %s %s", u.TLS, u.WhenFull, u.Sessions, u.Permissions, u.Quirks, u.origin("tls", u.own&keyTLS != 0))
		if got != tt.want {
			t.Errorf("%q from %v:\n got %s\nwant %s", tt.file, tt.peer, got, tt.want)
		}
		if camera.under(u, tt.peer).network != 0 && u.network == 0 {
			t.Errorf("%q from %v: the registry's user was changed", tt.file, tt.peer)
		}
	}
}

var otherLoopback = netip.MustParseAddr("127.0.0.7")

func TestPresetsSetWhatTheyNameAndWhatIsValid(t *testing.T) {
	for i := range presets {
		p := &presets[i]
		u, errs := parseUserFile("a.toml", "a", fmt.Appendf(nil, "profile = %q\n", p.name), testUsersDir, testStateDir)
		if len(errs) > 0 || u.preset != p.sets || u.own != 0 {
			t.Errorf("%s: %v, %b", p.name, errs, u.preset)
		}
		for i, key := range presetKeys {
			set := map[string]bool{"tls": p.values.TLS != "", "permissions": p.values.Permissions != 0, "sessions": p.values.Sessions != 0,
				"when_full": p.values.WhenFull != "", "quirks": p.values.Quirks != 0}[key]
			if set != (p.sets&(1<<i) != 0) {
				t.Errorf("%s: the value of %s and sets do not agree", p.name, key)
			}
		}
	}
	_, errs := parseUserFile("a.toml", "a", []byte("profile = \"camra\"\nquirks = [\"backslash\", \"no-espv\"]\n"), testUsersDir, testStateDir)
	want := "a.toml:1: profile: \"camra\" is no profile; known: camera, scanner, strict\na.toml:2: quirks[1]: \"no-espv\" is no quirk; did you mean \"no-epsv\"?"
	if errs.Error() != want {
		t.Errorf("got %v\nwant %s", errs, want)
	}
}

// TestNetworkProfileAllowsPlainFTPFromThereAlone: also a name that nobody has gets the
// answer that a user's gets, or it would tell who exists.
func TestNetworkProfileAllowsPlainFTPFromThereAlone(t *testing.T) {
	inBox(t, fmt.Sprintf(vlanProfile, "camera"), "", func(t *testing.T, b *ftpBox) {
		b.user(t, "own", "tls = \"required\"\n")
		for _, tt := range []struct {
			peer netip.Addr
			name string
			ok   bool
		}{
			{vlanPeer, "ann", true}, {vlanPeer, "nobody", true}, {vlanPeer, "own", false},
			{otherPeer, "ann", false}, {otherPeer, "nobody", false},
		} {
			c := b.dialFrom(t, tt.peer, boxLocal, "control")
			c.want("220 *")
			if got := c.features(); strings.Contains(got, "EPSV") == (tt.peer == vlanPeer) {
				t.Errorf("before login from %v: %s", tt.peer, got)
			}
			if tt.ok {
				c.cmd("USER "+tt.name, "331 *")
			} else {
				c.cmd("USER "+tt.name, "530 Passwords are not accepted in clear*")
			}
			if tt.name == "ann" && tt.ok {
				c.cmd("PASS secret", "230 *")
				c.cmd("EPSV", "502 *")
				c.cmd("RETR x", "550 Permission denied: this account may not read.")
				c.cmd("MKD x", "257 *")
			}
		}
		if !strings.Contains(b.log.String(), "result=\"clear text\"") || !strings.Contains(b.log.String(), "profile = \\\"camera\\\"") {
			t.Errorf("the log does not say what to do:\n%s", b.log)
		}
	})
}

func TestStrictTakesNothingInClear(t *testing.T) {
	inBox(t, "tls.require = \"none\"\n", "profile = \"strict\"\n", func(t *testing.T, b *ftpBox) {
		c := b.dial(t) // from loopback
		c.want("220 *")
		c.cmd("USER ann", "530 Passwords are not accepted in clear*")
		c = b.dial(t)
		c.startsTLS()
		c.cmd("USER ann", "331 *")
		c.cmd("PASS secret", "230 *")
		c.cmd("PORT 127,0,0,1,20,0", "502 *")
		c.cmd("EPSV", "229 *")
		c.data()
		c.cmd("LIST", "521 *")
		c.cmd("PBSZ 0", "200 *")
		c.cmd("PROT P", "200 *")
	})
}

// TestProfileFollowsAReload: a session is what its network's profile and its user's file
// are after a reload, and ends if it could not begin any more.
func TestProfileFollowsAReload(t *testing.T) {
	inBox(t, fmt.Sprintf(vlanProfile, "camera"), "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrom(t, vlanPeer, boxLocal, "control").login()
		c.cmd("EPSV", "502 *")
		change := func(old, now string) {
			t.Helper()
			text, err := os.ReadFile(b.srv.configPath)
			if err == nil {
				err = os.WriteFile(b.srv.configPath, []byte(strings.ReplaceAll(string(text), old, now)), 0o600)
			}
			if err == nil {
				err = b.srv.reload()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		change("camera", "scanner")
		c.cmd("EPSV", "229 *")
		c.cmd("MKD a", "257 *")
		c.cmd("MKD a", "257 *")
		b.user(t, "ann", "quirks = [\"no-epsv\"]\n")
		change("", "")
		c.cmd("EPSV", "502 *")
		c.cmd("MKD a", "550 *")
		change("10.0.9.0/24", "10.0.7.0/24")
		c.cmd("NOOP", "421 The operator has changed your account*")
	})
}

// TestOldTLSIsRefusedWithAdvice is a device that knows TLS 1.0 and 1.1 alone.
func TestOldTLSIsRefusedWithAdvice(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrom(t, vlanPeer, boxLocal, "control")
		c.want("220 *")
		c.cmd("AUTH TLS", "234 *")
		tc := tls.Client(c.bare, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
		if err := tc.Handshake(); err == nil {
			t.Error("TLS 1.1 is taken")
		}
		<-c.over
		if log := b.log.String(); !strings.Contains(log, "it offers TLS 1.1 or older") || !strings.Contains(log, "plain FTP") {
			t.Errorf("the log does not say so:\n%s", log)
		}
	})
}

// TestFramesHaveNoQuirks: who speaks frames knows what it does.
func TestFramesHaveNoQuirks(t *testing.T) {
	inBox(t, "", "quirks = [\"backslash\"]\n", func(t *testing.T, b *ftpBox) {
		b.dialFrames(t).enter().do(`{"do":"mkdir","path":"a\\b"}`, 257, "")
		if _, err := os.Stat(filepath.Join(b.home, `a\b`)); err != nil {
			t.Error(err)
		}
	})
}

func TestREADMEProfileTables(t *testing.T) {
	const heading = "Accounts, jails, quota"
	rows := readmeTable(t, heading, "profile")
	if len(rows) != len(presets) {
		t.Fatalf("%d profiles are documented; there are %d", len(rows), len(presets))
	}
	for i, row := range rows {
		p := &presets[i]
		want := []string{p.name}
		for k := range presetKeys {
			value := ""
			if p.sets&(1<<k) != 0 {
				value = []string{fmt.Sprintf("%q", p.values.TLS), strings.Join(p.values.Permissions.names(), ","), fmt.Sprint(p.values.Sessions),
					fmt.Sprintf("%q", p.values.WhenFull), strings.Join(p.values.Quirks.names(), ",")}[k]
			}
			want = append(want, value)
		}
		for k, cell := range row {
			if got := strings.Join(readmeWords(cell), ","); got != want[k] {
				t.Errorf("README.md, %s: %q; want %q", p.name, got, want[k])
			}
		}
	}
	rows = readmeTable(t, heading, "quirk")
	man, err := os.ReadFile("packaging/berth.toml.5")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(strings.NewReplacer(`\-`, "-", `\e`, `\`, `\(dq`, `"`).Replace(string(man))), " ")
	if len(rows) != len(quirkTable) {
		t.Fatalf("%d quirks are documented; there are %d", len(rows), len(quirkTable))
	}
	for i, q := range quirkTable {
		if rows[i][0] != "`"+q.word+"`" || rows[i][1] != q.help {
			t.Errorf("README.md: %q; want %s: %s", rows[i], q.word, q.help)
		}
		if !strings.Contains(page, fmt.Sprintf("%q %s.", q.word, q.help)) {
			t.Errorf("berth.toml.5 does not say of %s: %s", q.word, q.help)
		}
	}
}
