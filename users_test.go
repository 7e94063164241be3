package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	testFingerprint = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	testUsersDir    = "/etc/berth/users.d"
	testStateDir    = "/var/lib/berth"

	// cheapHash is of cheapPassword: bcrypt with the least cost, so that tests are quick.
	cheapHash     = "$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2"
	cheapPassword = "correct horse"
)

// writeUser writes users.d/NAME.toml with a new inode, as berth user does.
func writeUser(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name+".toml")
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// newUsersDir makes a users directory with files, NAME to text.
func newUsersDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "users.d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		writeUser(t, dir, name, text)
	}
	return dir
}

func mustLoadUsers(t *testing.T, dir string, log *slog.Logger) *users {
	t.Helper()
	us, err := loadUsers(dir, testStateDir, log)
	if err != nil {
		t.Fatal(err)
	}
	return us
}

// lockedBuffer is a log that several goroutines write to.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// textLog is a logger without times, and what it wrote.
func textLog() (*slog.Logger, *lockedBuffer) {
	b := &lockedBuffer{}
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})), b
}

func TestUserFileWithEveryKey(t *testing.T) {
	data, err := os.ReadFile("testdata/auth/full.toml")
	if err != nil {
		t.Fatal(err)
	}
	got, errs := parseUserFile("ann.toml", "ann", data, testUsersDir, testStateDir)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	networks := make([]network, 2)
	for i, s := range []string{"10.0.0.0/8", "192.0.2.1"} {
		if err := networks[i].UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	uid := uint32(1000)
	want := &user{
		Name: "ann", Password: got.Password, Certificates: []string{testFingerprint}, Home: "/srv/scans",
		QuotaBytes: 2 << 30, QuotaFiles: 100000, Permissions: permRead | permList, Commands: []string{"uptime", "snap"},
		Shell: true, Profile: "camera", TLS: "optional", Quirks: quirkNoEPSV | quirkBackslash, AllowFrom: networks, Sessions: 3, DownloadRate: 1 << 20, WhenFull: "rotate",
		Expire: duration(30 * 24 * time.Hour), UID: &uid, Shares: map[string]shareConfig{"public": {"/srv/public", true}},
		OnUpload: "snap", Disabled: true, hash: got.hash, own: keyTLS | keyPermissions | keySessions | keyWhenFull | keyQuirks,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("parseUserFile:\n got %+v\nwant %+v", got, want)
	}
}

func TestEmptyUserFileHasTheDefaults(t *testing.T) {
	got, errs := parseUserFile("ann.toml", "ann", nil, testUsersDir, testStateDir)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	want := &user{Name: "ann", Home: "/var/lib/berth/homes/ann", Permissions: permAll, TLS: "required", Sessions: 10, WhenFull: "reject"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("parseUserFile:\n got %+v\nwant %+v", got, want)
	}
}

func TestUserFileMistakes(t *testing.T) {
	data, err := os.ReadFile("testdata/auth/bad.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, errs := parseUserFile("bad.toml", "bad", data, testUsersDir, testStateDir)
	var got []string
	for _, e := range errs {
		e.Column = 0
		got = append(got, e.Error())
	}
	want := []string{
		`bad.toml:2: password: MD5-crypt ($1$) is not accepted, only $argon2id$, $2y$ (bcrypt), $6$ or $5$ (SHA-crypt); set one with "berth user passwd bad"`,
		`bad.toml:3: certificates[0]: "sha256:12" is no certificate fingerprint; write "sha256:" and 64 hex digits`,
		`bad.toml:4: home: "scans" is not absolute; use a path like "/srv/scans"`,
		`bad.toml:5: quota_bytes: `,
		`bad.toml:6: quota_files: -1 is below 0; write how many files, 0 for no limit`,
		`bad.toml:7: permissions[1]: "wriet" is no permission; did you mean "write"?`,
		`bad.toml:8: commands[0]: an empty name; write the name of a [commands.NAME] section`,
		`bad.toml:9: tls: "maybe" is not known; write "required", "optional" or "always"`,
		`bad.toml:10: allow_from[0]: `,
		`bad.toml:11: sessions: 0 is below 1; write how many at once, or disabled = true to keep the user out`,
		`bad.toml:12: when_full: "explode" is not known; write "reject" or "rotate"`,
		`bad.toml:13: expire: `,
		`bad.toml:14: uid: `,
		`bad.toml:15: disabeld: unknown key; did you mean "disabled"?`,
		`bad.toml:17: shares."../x": "../x" cannot be the name of a share; use one name without "/", as "public"`,
		`bad.toml:21: shares.state.path: "/var/lib" holds "/var/lib/berth", which is berth's own; use a directory beside it`,
	}
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Errorf("missing: %s", want[i])
		case i >= len(want):
			t.Errorf("too much: %s", got[i])
		case !strings.HasPrefix(got[i], want[i]):
			t.Errorf("mistake %d:\n got %s\nwant %s", i, got[i], want[i])
		}
	}
}

func TestUserFileErrorsNeverHoldThePassword(t *testing.T) {
	for _, text := range []string{
		`password = "hunter2"`, `password = hunter2`, `password = 'hunter2`, `password = ["hunter2"]`, "password = \"hunter2\nx",
		`passwort = "hunter2"`, `password "hunter2"`, `PASSWORD = "hunter2"`, "password = \"\"\"\nhunter2\"\"\"", `"password" = hunter2`,
	} {
		_, errs := parseUserFile("ann.toml", "ann", []byte(text), testUsersDir, testStateDir)
		if len(errs) == 0 || strings.Contains(errs.Error(), "hunter2") {
			t.Errorf("parseUserFile(%q) = %v; want errors without the password", text, errs)
		}
	}
}

func TestCheckUserDir(t *testing.T) {
	for _, tt := range []struct {
		dir, want string
		ok        bool
	}{
		{"/srv/scans", "/srv/scans", true},
		{"/srv//scans/../x/", "/srv/x", true},
		{"/var/lib/berth/homes/ann", "/var/lib/berth/homes/ann", true},
		{"/var/lib/berth/homes", "/var/lib/berth/homes", true},
		{"/var/lib/berth2", "/var/lib/berth2", true},
		{"/", "/", false},
		{"/etc", "/etc", false},
		{"/etc/berth/users.d", "/etc/berth/users.d", false},
		{"/etc/berth/users.d/ann", "/etc/berth/users.d/ann", false},
		{"/var/lib/berth/tls", "/var/lib/berth/tls", false},
		{"/srv/../var/lib/berth", "/var/lib/berth", false},
		{"scans", "scans", false},
		{"../x", "../x", false},
		{"/a\x00b", "/a\x00b", false},
		{"/a\nb", "/a\nb", false},
	} {
		ok := true
		got := checkUserDir(tt.dir, testUsersDir, testStateDir, func(string) { ok = false })
		if got != tt.want || ok != tt.ok {
			t.Errorf("checkUserDir(%q) = %q, ok %v; want %q, %v", tt.dir, got, ok, tt.want, tt.ok)
		}
	}
	checkUserDir("/tmp/d", "/tmp/d/.berth-demo/users.d", "/tmp/d/.berth-demo", func(problem string) {
		t.Errorf("a state directory that no client can name is refused: %s", problem)
	})
}

func TestCheckUserName(t *testing.T) {
	for name, ok := range map[string]bool{
		"ann": true, "a": true, "_x": true, "0": true, "a.b-c_d": true, "a..b": true, strings.Repeat("a", 32): true, "anonymous": true,
		"": false, ".": false, "..": false, ".a": false, "-a": false, "Ann": false, "a/b": false, "../a": false, "a b": false, "a\n": false,
		"a\x00": false, "ä": false, strings.Repeat("a", 33): false, "root": false, "ann.toml": false, "%s": false, "a\\b": false,
	} {
		if err := checkUserName(name); (err == nil) != ok {
			t.Errorf("checkUserName(%q) = %v; want ok %v", name, err, ok)
		}
	}
}

func TestPermissions(t *testing.T) {
	u := &user{Permissions: permRead | permList}
	if !u.can(permRead) || !u.can(permRead|permList) || u.can(permWrite) || u.can(permRead|permWrite) || !u.can(0) {
		t.Errorf("can disagrees with %v", u.Permissions)
	}
	if got := permAll.String(); got != "read,write,delete,list,rename,mkdir" {
		t.Errorf("permAll = %q", got)
	}
	u, errs := parseUserFile("a.toml", "a", []byte("permissions = []"), testUsersDir, testStateDir)
	if errs != nil || u.Permissions != 0 {
		t.Errorf("an empty list gives %v, %v; want no permission", u.Permissions, errs)
	}
}

func TestLoadUsersTellsEveryMistakeOfEveryFile(t *testing.T) {
	dir := newUsersDir(t, map[string]string{
		"ann": "tls = \"no\"\nsessions = 0\n", "bob": "uid = 5\n", "carl": "uid = 5\n", "Dora": "", "..": "", "root": "", ".hidden": "broken",
	})
	if err := os.WriteFile(filepath.Join(dir, "README"), []byte("broken"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.toml"), 0o600); err != nil {
		t.Fatal(err)
	}
	writeUser(t, dir, "open", "")
	if err := os.Chmod(filepath.Join(dir, "open.toml"), 0o666); err != nil {
		t.Fatal(err)
	}
	_, err := loadUsers(dir, testStateDir, slog.New(slog.DiscardHandler))
	for _, want := range []string{
		"ann.toml:1: tls: ", "ann.toml:2: sessions: ", `carl.toml: uid: 5 is the uid of user "bob" already`, `Dora.toml: the file's name: "Dora" is no user name`,
		`root.toml: the file's name: "root" is reserved`, "fifo.toml: cannot be used: not a regular file", "open.toml: cannot be used: mode 0666 lets anyone",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("loadUsers: no %q in\n%v", want, err)
		}
	}
	if _, ok := err.(configErrors); !ok {
		t.Errorf("the error is a %T; want configErrors", err)
	}
	if err != nil && strings.Count(err.Error(), "\n") != 6 {
		t.Errorf("loadUsers: want 7 mistakes in\n%v", err)
	}
}

func TestUsersFollowTheirFiles(t *testing.T) {
	dir := newUsersDir(t, map[string]string{"ann": "sessions = 1\n"})
	log, out := textLog()
	us := mustLoadUsers(t, dir, log)
	sessions := func(name string, want int) {
		t.Helper()
		got := 0
		if u := us.get(name); u != nil {
			got = u.Sessions
		}
		if got != want {
			t.Errorf("get(%q).Sessions = %d; want %d\n%s", name, got, want, out)
		}
	}
	sessions("ann", 1)
	sessions("bob", 0)
	writeUser(t, dir, "ann", "sessions = 2\n") // the same size, and within a clock tick
	writeUser(t, dir, "bob", "sessions = 9\n")
	sessions("ann", 2)
	sessions("bob", 9)
	if err := os.WriteFile(filepath.Join(dir, "ann.toml"), []byte("sessions = 3\n"), 0o600); err != nil { // the same inode
		t.Fatal(err)
	}
	sessions("ann", 3)
	writeUser(t, dir, "ann", "sessions = 0\n")
	for range 5 {
		sessions("ann", 3) // the last good version
	}
	if n := strings.Count(out.String(), "user file invalid"); n != 1 {
		t.Errorf("the mistake was logged %d times; want once\n%s", n, out)
	}
	if err := us.reload(nil); err == nil {
		t.Error("reload accepts a file that get refuses")
	}
	sessions("ann", 3)
	writeUser(t, dir, "ann", "sessions = 4\n")
	sessions("ann", 4)
	if err := os.Remove(filepath.Join(dir, "ann.toml")); err != nil {
		t.Fatal(err)
	}
	sessions("ann", 0)
	sessions("../users.d/bob", 0)
	if err := us.reload(nil); err != nil {
		t.Error(err)
	}
	if all := us.all(); len(all) != 1 || all[0].Name != "bob" {
		t.Errorf("all() = %v; want bob alone", all)
	}
}

func TestUsersTrustASettledStamp(t *testing.T) {
	dir := newUsersDir(t, map[string]string{"ann": ""})
	us := mustLoadUsers(t, dir, slog.New(slog.DiscardHandler))
	info, err := os.Stat(us.path("ann"))
	if err != nil {
		t.Fatal(err)
	}
	if got := stampFor(info); got != (fileStamp{}) && time.Since(info.ModTime()) < settleTime {
		t.Errorf("a file changed just now has the stamp %v; want none", got)
	}
}

func TestUsersByUIDAndCertificate(t *testing.T) {
	cert := func(extra string) string {
		return fmt.Sprintf("certificates = [%q]\n%s", testFingerprint, extra)
	}
	dir := newUsersDir(t, map[string]string{"ann": cert("uid = 7\n"), "bob": ""})
	us := mustLoadUsers(t, dir, slog.New(slog.DiscardHandler))
	check := func(wantUID string, wantCertificate ...string) {
		t.Helper()
		got := ""
		if u := us.byUID(7); u != nil {
			got = u.Name
		}
		if got != wantUID {
			t.Errorf("byUID(7) = %q; want %q", got, wantUID)
		}
		var names []string
		for _, u := range us.byCertificate(strings.ToUpper(testFingerprint[7:9]) + testFingerprint[9:]) {
			t.Errorf("byCertificate without its prefix finds %q", u.Name)
		}
		for _, u := range us.byCertificate("SHA256:" + strings.ToUpper(testFingerprint[7:])) {
			names = append(names, u.Name)
		}
		if !slices.Equal(names, wantCertificate) {
			t.Errorf("byCertificate = %q; want %q", names, wantCertificate)
		}
	}
	check("ann", "ann")
	writeUser(t, dir, "bob", cert(""))
	check("ann", "ann", "bob")
	writeUser(t, dir, "bob", cert("uid = 7\n")) // taken, so the file is invalid and the last one holds
	us.get("bob")
	check("ann", "ann", "bob")
	writeUser(t, dir, "ann", "") // and now it is free
	check("bob", "bob")
	writeUser(t, dir, "ann", "uid = 8\n")
	us.all()
	writeUser(t, dir, "ann", "uid = 7\n") // both swap
	writeUser(t, dir, "bob", "uid = 8\n")
	check("ann")
	if us.byUID(0) != nil || us.byUID(9) != nil {
		t.Error("byUID finds someone for a uid that nobody has")
	}
}

func TestMissingUsersDirectoryHasNoUsers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "users.d")
	log, out := textLog()
	us := mustLoadUsers(t, dir, log)
	if us.get("ann") != nil || len(us.all()) != 0 || strings.Count(out.String(), "no such directory") != 1 {
		t.Errorf("want no users and one warning, got\n%s", out)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writeUser(t, dir, "ann", "")
	if us.get("ann") == nil {
		t.Error("a user made later is not found")
	}
}

func TestUsersAtOnce(t *testing.T) {
	dir := newUsersDir(t, map[string]string{"ann": "uid = 1\n", "bob": ""})
	us := mustLoadUsers(t, dir, slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				switch (i + j) % 5 {
				case 0:
					if us.get("ann") == nil {
						t.Error("ann is gone")
					}
				case 1:
					us.byUID(1)
				case 2:
					us.byCertificate(testFingerprint)
				case 3:
					us.all()
				case 4:
					if err := us.reload(nil); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for i := range 20 {
		writeUser(t, dir, "bob", fmt.Sprintf("sessions = %d\n", i+1))
	}
	wg.Wait()
}

// FuzzUserFile holds for any file: no panic; what is accepted is safe; and an edit
// changes its key alone.
func FuzzUserFile(f *testing.F) {
	files, err := filepath.Glob("testdata/auth/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("\xef\xbb\xbfhome = '/srv/x'\r\nshares.a.path = \"/srv/a\"\r\n"))
	f.Add([]byte("sessions=3"))
	f.Add([]byte("# only a comment"))
	f.Fuzz(func(t *testing.T, data []byte) {
		before, errs := parseUserFile("ann.toml", "ann", data, testUsersDir, testStateDir)
		if len(errs) > 0 {
			return
		}
		if !filepath.IsAbs(before.Home) || filepath.Clean(before.Home) != before.Home || before.Sessions < 1 || before.QuotaFiles < 0 {
			t.Fatalf("accepted: %+v", before)
		}
		for name, s := range before.Shares {
			if strings.Contains(name, "/") || !filepath.IsAbs(s.Path) {
				t.Fatalf("accepted share %q: %+v", name, s)
			}
		}
		edited, err := editUserFile(data, map[string]string{"sessions": "77", "when_full": `"rotate"`, "uid": ""})
		if err != nil {
			t.Fatalf("editUserFile(%q): %v", data, err)
		}
		after, errs := parseUserFile("ann.toml", "ann", edited, testUsersDir, testStateDir)
		if len(errs) > 0 {
			t.Fatalf("editUserFile(%q) = %q: %v", data, edited, errs)
		}
		want := *before
		want.Sessions, want.WhenFull, want.UID = 77, "rotate", nil
		want.own |= keySessions | keyWhenFull
		want.preset &^= keySessions | keyWhenFull
		after.hash, want.hash = nil, nil
		if !reflect.DeepEqual(*after, want) {
			t.Fatalf("editUserFile(%q) = %q:\n got %+v\nwant %+v", data, edited, *after, want)
		}
	})
}
