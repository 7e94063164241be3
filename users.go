package main

// Who exists: the schema of a users.d file and the registry that follows the files as
// they change. A file of its own, beside auth.go, for trust: what is read here was
// written by whoever runs the machine, what auth.go judges comes from strangers, and
// the only thing of theirs that gets here is a name, checked before a path is made of
// it. It must not know passwords (only their hashes), addresses, sockets or reply codes.

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// userSuffix ends the names of user files; everything else in users.d is ignored.
	userSuffix = ".toml"

	// maxUserFile bounds what is read of one; a rich one has 2 KiB.
	maxUserFile = 64 << 10

	// defaultUserSessions is the contract's sessions, section 7.
	defaultUserSessions = 10

	// settleTime is how old a file's last change must be before its times are taken as
	// proof that it has not changed again: file systems stamp by a clock that may tick
	// only every 10 ms, and two edits within one tick look the same.
	settleTime = 100 * time.Millisecond
)

// --- permissions ---

// permission is a set of the rights in a user file's permissions.
type permission uint8

const (
	permRead permission = 1 << iota
	permWrite
	permDelete
	permList
	permRename
	permMkdir

	permAll = permRead | permWrite | permDelete | permList | permRename | permMkdir
)

// permissionNames are the words of the file, by bit.
var permissionNames = [...]string{"read", "write", "delete", "list", "rename", "mkdir"}

// names are the words for p in the order of the contract.
//
//go:noinline
func (p permission) names() []string {
	list := []string{} // never nil: it becomes a JSON array
	for i, name := range permissionNames {
		if p&(1<<i) != 0 {
			list = append(list, name)
		}
	}
	return list
}

// String is the words with commas, as --permissions takes them; "" for none.
func (p permission) String() string { return strings.Join(p.names(), ",") }

// parsePermission reads one word.
func parsePermission(word string) (permission, error) {
	if i := slices.Index(permissionNames[:], word); i >= 0 {
		return 1 << i, nil
	}
	return 0, errorf("%s is no permission; %s", configQuote(word), nearestWord(word, permissionNames[:]))
}

// nearestWord ends an error about a word that is none of known: the one that may have
// been meant, or all.
func nearestWord(word string, known []string) string {
	best, distance := "", max(2, len(word)/3)+1
	for _, k := range known {
		if d := editDistance(word, k); d < distance {
			best, distance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "known: " + strings.Join(known, ", ")
}

// --- a user ---

// user is one file of users.d with the defaults filled in; contract section 7 has the
// meaning of each key. It is never changed once it is in the registry: a changed file
// makes a new one, and sessions keep theirs.
type user struct {
	Name         string                 `toml:"-"`
	Password     string                 `toml:"password"` // the stored hash
	Certificates []string               `toml:"certificates"`
	Home         string                 `toml:"home"`  // absolute and clean
	Quota        string                 `toml:"quota"` // "", or "filesystem": section 6
	QuotaBytes   byteSize               `toml:"quota_bytes"`
	QuotaFiles   int64                  `toml:"quota_files"`
	Permissions  permission             `toml:"-"`
	Commands     []string               `toml:"commands"`
	Shell        bool                   `toml:"shell"`
	ShellPath    string                 `toml:"shell_path"` // absolute; "": /bin/sh
	Profile      string                 `toml:"profile"`    // "", or one of presets
	TLS          string                 `toml:"tls"`        // "required", "optional" or "always"
	Quirks       quirk                  `toml:"-"`
	AllowFrom    []network              `toml:"allow_from"`
	Sessions     int                    `toml:"sessions"`
	DownloadRate byteSize               `toml:"download_rate"` // a second; 0 is no limit
	UploadRate   byteSize               `toml:"upload_rate"`
	WhenFull     string                 `toml:"when_full"` // "reject" or "rotate"
	Expire       duration               `toml:"expire"`
	UID          *uint32                `toml:"uid"` // nil: no local login
	Shares       map[string]shareConfig `toml:"shares"`
	OnUpload     string                 `toml:"on_upload"`
	Disabled     bool                   `toml:"disabled"`

	hash *passwordHash // nil: no password logs in

	// Where the values are from: which keys the file sets itself, and which its profile.
	// network and networkProfile are of the copy that a session has, see profile.go.
	own, preset, network keySet
	networkProfile       string
}

// shareConfig is a directory outside the home that shows as /NAME.
type shareConfig struct {
	Path  string `toml:"path"` // absolute and clean
	Write bool   `toml:"write"`
}

// userFile is user with what TOML writes differently.
type userFile struct {
	user
	Words      []string `toml:"permissions"`
	QuirkWords []string `toml:"quirks"`
}

// can tells whether u has all rights of p.
func (u *user) can(p permission) bool { return p&^u.Permissions == 0 }

// hasCertificate tells whether the client certificate with this fingerprint, in any
// notation that the file may use, logs in as u.
func (u *user) hasCertificate(fingerprint string) bool {
	fp, err := normalFingerprint(fingerprint)
	return err == nil && inList(u.Certificates, fp)
}

var userNameShape = regexp.MustCompile(`^[a-z0-9_][a-z0-9_.-]{0,31}$`)

// checkUserName refuses names that are unsafe in a path (the name becomes a file and a
// directory, and some server has let "../x" through there), or that mislead.
func checkUserName(name string) error {
	switch {
	case !userNameShape.MatchString(name):
		return errorf("%s is no user name; use 1 to 32 of a-z, 0-9, _, - and ., not beginning with . or -", configQuote(name))
	case strings.HasSuffix(name, userSuffix):
		return errorf("%q is no user name, since it ends like a user file; use %q", name, cmp.Or(strings.TrimSuffix(name, userSuffix), "NAME"))
	case name == "root":
		// The system's root has rights here (the admin verbs on the local socket)
		// that a password for "root" would seem to give and does not.
		return newError(`"root" is reserved for the system's own root; use another name`)
	}
	return nil
}

// fingerprintPrefix names the digest in a certificate's fingerprint.
const fingerprintPrefix = "sha256:"

// normalFingerprint is "sha256:" and 64 lower-case hex digits, the SHA-256 of the DER
// certificate. Upper case and the colons that openssl x509 -fingerprint prints are read.
func normalFingerprint(s string) (string, error) {
	digits, ok := cutPrefix(strings.ToLower(s), fingerprintPrefix)
	digits = strings.ReplaceAll(digits, ":", "")
	if raw, err := hex.DecodeString(digits); !ok || err != nil || len(raw) != sha256.Size {
		return "", errorf(`%s is no certificate fingerprint; write "sha256:" and 64 hex digits`, configQuote(s))
	}
	return fingerprintPrefix + digits, nil
}

// parseUserFile reads the file of the user called name. usersDir and stateDir are
// where the user must not reach, and where the default home is. Every mistake is in the
// errors, with its line; the user is to be used only if there are none.
func parseUserFile(file, name string, data []byte, usersDir, stateDir string) (*user, configErrors) {
	f := userFile{
		user:  user{Name: name, Permissions: permAll, TLS: "required", Sessions: defaultUserSessions, WhenFull: "reject"},
		Words: permAll.names(),
	}
	errs := decodeStrict(file, data, &f)
	hidePassword(errs, data)
	u := &f.user
	bad := func(key, format string, args ...any) {
		if !errs.has(key) {
			errs = append(errs, configError{File: file, Line: lineOf(data, key), Key: key, Problem: fmt.Sprintf(format, args...)})
		}
	}
	oneOf := func(key, value string, known ...string) {
		if last := len(known) - 1; !inList(known, value) {
			bad(key, `%s is not known; write "%s" or %q`, configQuote(value), strings.Join(known[:last], `", "`), known[last])
		}
	}

	if err := checkUserName(name); err != nil {
		errs = append(errs, configError{File: file, Problem: "the file's name: " + err.Error()})
	}
	var err error
	if u.hash, err = parsePassword(u.Password); err != nil {
		bad("password", `%v; set one with "berth user passwd %s"`, err, name)
	}
	for i, c := range u.Certificates {
		if u.Certificates[i], err = normalFingerprint(c); err != nil {
			bad(fmt.Sprintf("certificates[%d]", i), "%v", err)
		}
	}
	if u.Home == "" {
		u.Home = filepath.Join(stateDir, "homes", name)
	}
	u.Home = checkUserDir(u.Home, usersDir, stateDir, func(problem string) { bad("home", "%s", problem) })
	switch u.Quota {
	case "":
	case "filesystem":
		if u.QuotaBytes != 0 || u.QuotaFiles != 0 {
			bad("quota", `"filesystem" leaves the limits to the file system; remove quota_bytes and quota_files`)
		}
	default:
		bad("quota", `%s is not known; write "filesystem", or a limit as quota_bytes = "2GiB"`, configQuote(u.Quota))
	}
	if u.QuotaFiles < 0 {
		bad("quota_files", "%d is below 0; write how many files, 0 for no limit", u.QuotaFiles)
	}
	u.Permissions = 0
	for i, word := range f.Words {
		p, err := parsePermission(word)
		if err != nil {
			bad(fmt.Sprintf("permissions[%d]", i), "%v", err)
		}
		u.Permissions |= p
	}
	for i, c := range u.Commands {
		if c == "" {
			bad(fmt.Sprintf("commands[%d]", i), "an empty name; write the name of a [commands.NAME] section")
		}
	}
	if u.ShellPath != "" && (!filepath.IsAbs(u.ShellPath) || strings.ContainsRune(u.ShellPath, 0)) {
		bad("shell_path", `%s is not the absolute path of a shell; write one like "/bin/bash"`, configQuote(u.ShellPath))
	}
	for i, word := range f.QuirkWords {
		q, err := parseQuirk(word)
		if err != nil {
			bad(fmt.Sprintf("quirks[%d]", i), "%v", err)
		}
		u.Quirks |= q
	}
	oneOf("tls", u.TLS, "required", "optional", "always")
	if u.Sessions < 1 {
		bad("sessions", "%d is below 1; write how many at once, or disabled = true to keep the user out", u.Sessions)
	}
	oneOf("when_full", u.WhenFull, "reject", "rotate")
	for _, share := range slices.Sorted(maps.Keys(u.Shares)) {
		c := u.Shares[share]
		key := tomlJoinKey("shares", share)
		if err := checkShareName(share); err != nil {
			bad(key, "%v", err)
		}
		if c.Path == "" {
			bad(key, `no path; write %s = { path = "/srv/%s" }`, key, share)
			continue
		}
		c.Path = checkUserDir(c.Path, usersDir, stateDir, func(problem string) { bad(key+".path", "%s", problem) })
		u.Shares[share] = c
	}
	at := positionsOf(trimBOM(data))
	for i, key := range presetKeys {
		if _, ok := at[key]; ok {
			u.own |= 1 << i
		}
	}
	if p := findPreset(u.Profile); p != nil {
		u.preset = u.fill(p, ^u.own)
	} else if u.Profile != "" {
		bad("profile", "%s", checkProfile(u.Profile))
	}
	sort.SliceStable(errs, func(i, j int) bool { return errs[i].Line < errs[j].Line })
	return u, errs
}

// hidePassword rewrites errors about the password's line: the decoder repeats wrong
// values, and a wrong value there is most likely the password itself.
func hidePassword(errs configErrors, data []byte) {
	for i, e := range errs {
		from, to := tomlLineBounds(data, max(e.Line, 1))
		if e.Key == "password" || hasText(strings.ToLower(string(data[from:to])), "password") {
			errs[i].Key, errs[i].Column = "password", 0
			errs[i].Problem = `not a string; write password = "$argon2id$..." or set it with "berth user passwd"`
		}
	}
}

// checkUserDir cleans the directory that a user is to see. It must be absolute, and
// must not show berth's own files: who could write users.d could make himself anyone,
// and the state directory holds the TLS key. A file name that clients cannot name
// (reserved, ".berth-") on the way there is as good as a wall. Links are not followed:
// this is against mistakes, and the jail is against malice.
func checkUserDir(dir, usersDir, stateDir string, bad func(problem string)) string {
	if !filepath.IsAbs(dir) || strings.ContainsAny(dir, "\x00\r\n") {
		bad(fmt.Sprintf("%s is not absolute; use a path like %q", configQuote(dir), "/srv/"+strings.TrimLeft(filepath.Base(dir), "./")))
		return dir
	}
	dir = filepath.Clean(dir)
	for _, own := range []string{usersDir, stateDir} {
		rel, err := filepath.Rel(dir, own)
		if own == "" || err != nil || rel == ".." || beginsWith(rel, "../") || hasText("/"+rel, "/.berth-") {
			continue
		}
		bad(fmt.Sprintf("%q holds %q, which is berth's own; use a directory beside it", dir, own))
		return dir
	}
	for _, own := range []string{usersDir, joinPath(stateDir, tlsDirectory)} {
		if rel, err := filepath.Rel(own, dir); err == nil && rel != ".." && !beginsWith(rel, "../") {
			bad(fmt.Sprintf("%q is in %q, which is berth's own; use a directory beside it", dir, own))
			break
		}
	}
	return dir
}

// checkShareName refuses what could not be one name in the user's top directory.
func checkShareName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 ||
		beginsWith(name, ".berth-") || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == '/' || r == 0x7f }) {
		return errorf(`%s cannot be the name of a share; use one name without "/", as "public"`, configQuote(name))
	}
	return nil
}

// --- the registry ---

// users is the registry of users.d. It follows the files: a login sees what the file
// says at that moment. All methods may be called at once from anywhere.
type users struct {
	dir, stateDir string
	log           *slog.Logger

	current atomic.Pointer[userSet] // replaced whole, never changed

	mu         mutex     // held while files are read and current is replaced
	dirStamp   fileStamp // of dir before it was last listed
	dirProblem string    // the last trouble with dir itself, so that it is logged once
}

// userSet is what the registry knows at one time.
type userSet struct {
	entries       map[string]*userEntry
	byCertificate map[string][]*user
	byUID         map[uint32]*user
}

// userEntry is one file. user is the last good version, nil if there has been none.
type userEntry struct {
	user    *user
	sum     [sha256.Size]byte // of the bytes last read
	problem string            // what is wrong with them
	exposed bool              // everyone on the machine can read the hash in it
	stamp   atomic.Pointer[fileStamp]
}

// fileStamp tells versions of a file apart. The change time is in it because the
// modification time can be set, by cp -p and touch among others.
type fileStamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// stampFor is the stamp of what info describes, or the zero stamp, which no file
// matches, if that was changed too recently to trust it.
func stampFor(info fs.FileInfo) fileStamp {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileStamp{}
	}
	if age := time.Since(time.Unix(st.Ctim.Unix())); age < settleTime {
		return fileStamp{}
	}
	return fileStamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}
}

func newUserSet(entries map[string]*userEntry) *userSet {
	set := &userSet{entries: entries, byCertificate: map[string][]*user{}, byUID: map[uint32]*user{}}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		u := entries[name].user
		if u == nil {
			continue
		}
		for _, fp := range slices.Compact(slices.Sorted(slices.Values(u.Certificates))) {
			set.byCertificate[fp] = append(set.byCertificate[fp], u)
		}
		if u.UID != nil {
			set.byUID[*u.UID] = u
		}
	}
	return set
}

// loadUsers reads every user file of dir. An error is a configErrors with every mistake
// of every file. A dir that does not exist has no users yet; that is a warning in log.
func loadUsers(dir, stateDir string, log *slog.Logger) (*users, error) {
	us := &users{dir: filepath.Clean(dir), stateDir: filepath.Clean(stateDir), log: log}
	us.current.Store(newUserSet(nil))
	return us, us.reload(nil)
}

// reload reads all files again. With any mistake in any of them, a configErrors,
// or one that check finds in them together, everything stays as it was.
func (us *users) reload(check func([]*user) error) error {
	us.mu.Lock()
	defer us.mu.Unlock()
	set, errs := us.readAll()
	if len(errs) > 0 {
		return errs
	}
	if check != nil {
		if err := check(set.sorted()); err != nil {
			return err
		}
	}
	us.current.Store(set)
	for _, u := range set.sorted() {
		us.warnExposed(u.Name, set.entries[u.Name])
	}
	return nil
}

func (us *users) warnExposed(name string, e *userEntry) {
	if e.exposed {
		us.log.Warn("user file readable by everyone", "user", name, "path", us.path(name), "advice", "chmod 600")
	}
}

// readAll reads the directory from nothing. The set has the users of the right files.
func (us *users) readAll() (*userSet, configErrors) {
	names, err := us.list()
	if err != nil {
		return newUserSet(nil), configErrors{{File: us.dir, Problem: err.Error()}}
	}
	entries := map[string]*userEntry{}
	uids := map[uint32]*user{}
	var errs configErrors
	for _, name := range names {
		e, more := us.readEntry(name)
		if e == nil && more == nil {
			continue // gone between listing and reading
		}
		if u := e.user; u != nil && u.UID != nil {
			if other := uids[*u.UID]; other != nil {
				more = append(more, us.uidTaken(u, other))
				e.user = nil
			} else {
				uids[*u.UID] = u
			}
		}
		if errs = append(errs, more...); more == nil {
			entries[name] = e
		}
	}
	return newUserSet(entries), errs
}

func (us *users) uidTaken(u, other *user) configError {
	return configError{File: us.path(u.Name), Key: "uid",
		Problem: fmt.Sprintf("%d is the uid of user %q already; a uid can log in as one user only", *u.UID, other.Name)}
}

//go:noinline
func (us *users) path(name string) string { return joinPath(us.dir, name+userSuffix) }

// usersDirError says what to do. Its modes are right as a rule when berth user or berth
// check may not read it: it has hashes in it, and is for root and the daemon.
func usersDirError(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return errorf("%w; it is for root and the daemon: use sudo", errors.Unwrap(err))
	}
	return errorf("%w; correct server.users_dir", errors.Unwrap(err))
}

// list is the names of the user files, sorted. Files whose names begin with "." are
// berth user's unfinished ones, or an editor's.
func (us *users) list() ([]string, error) {
	info, err := os.Stat(us.dir)
	if errors.Is(err, fs.ErrNotExist) {
		us.dirStamp = fileStamp{}
		us.dirTrouble("no such directory; nobody can log in until one is made with berth user add")
		return nil, nil
	}
	if err != nil {
		return nil, usersDirError(err)
	}
	stamp := stampFor(info)
	files, err := namesIn(us.dir)
	if err != nil {
		return nil, usersDirError(err)
	}
	us.dirStamp, us.dirProblem = stamp, ""
	var names []string
	for _, f := range files {
		if name, ok := strings.CutSuffix(f, userSuffix); ok && !beginsWith(f, ".") {
			names = append(names, name)
		}
	}
	return names, nil
}

func (us *users) dirTrouble(problem string) {
	if us.dirProblem != problem {
		us.dirProblem = problem
		us.log.Warn("users directory", "path", us.dir, "error", problem)
	}
}

// readEntry reads one file; nil and nil when there is none.
func (us *users) readEntry(name string) (*userEntry, configErrors) {
	e := &userEntry{}
	data, stamp, mode, err := us.readUserFile(name)
	e.stamp.Store(&stamp)
	e.exposed = mode.Perm()&0o004 != 0
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
			err = pe.Err
		}
		problem := "cannot be used: " + err.Error()
		if errors.Is(err, fs.ErrPermission) {
			problem += "; give it the owner that berth runs as"
		}
		errs := configErrors{{File: us.path(name), Problem: problem}}
		e.problem = errs.Error()
		return e, errs
	}
	e.sum = sha256.Sum256(data)
	u, errs := parseUserFile(us.path(name), name, data, us.dir, us.stateDir)
	if len(errs) > 0 {
		e.problem = errs.Error()
		return e, errs
	}
	e.user = u
	return e, nil
}

// readUserFile reads the bytes, and the stamp and mode that belong to them. Nothing but a
// plain file is read, and a FIFO is not waited for.
func (us *users) readUserFile(name string) ([]byte, fileStamp, fs.FileMode, error) {
	f, err := os.OpenFile(us.path(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileStamp{}, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fileStamp{}, 0, err
	}
	stamp, mode := stampFor(info), info.Mode()
	if !mode.IsRegular() {
		return nil, stamp, 0, newError("not a regular file")
	}
	if mode.Perm()&0o002 != 0 {
		return nil, stamp, 0, errorf("mode %04o lets anyone on this machine change the user; chmod 600 it", mode.Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxUserFile+1))
	if err == nil && len(data) > maxUserFile {
		err = errorf("longer than %v", byteSize(maxUserFile))
	}
	return data, stamp, mode, err
}

// get is the user of that name as the file describes him now, or nil. Its usual cost is
// one stat(2). A file that has become invalid is logged once, and its last good version
// holds until it is mended or removed.
func (us *users) get(name string) *user {
	if checkUserName(name) != nil {
		return nil // and no path was made of it
	}
	info, err := os.Stat(us.path(name))
	e := us.current.Load().entries[name]
	if e == nil && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if e != nil && err == nil {
		if stamp := stampFor(info); stamp != (fileStamp{}) && *e.stamp.Load() == stamp {
			return e.user
		}
	}
	us.mu.Lock()
	defer us.mu.Unlock()
	us.follow(name)
	if e = us.current.Load().entries[name]; e == nil {
		return nil
	}
	return e.user
}

// follow brings the entry of one user up to date with his file. us.mu is held.
func (us *users) follow(name string) {
	set := us.current.Load()
	old := set.entries[name]
	info, err := os.Stat(us.path(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		us.dirTrouble(errors.Unwrap(err).Error()) // the directory; what is known stays
		return
	}
	if err == nil && old != nil {
		if stamp := stampFor(info); stamp != (fileStamp{}) && *old.stamp.Load() == stamp {
			return // by another caller meanwhile
		}
	}
	e, errs := us.readEntry(name)
	if e == nil {
		if old != nil {
			us.log.Info("user file", "user", name, "result", "removed")
			us.replace(name, nil)
		}
		return
	}
	if old != nil && e.sum == old.sum && e.problem == old.problem {
		old.stamp.Store(e.stamp.Load())
		return
	}
	if other := us.uidHolder(set, e.user); other != nil {
		errs = append(errs, us.uidTaken(e.user, other))
		e.user, e.problem = nil, errs.Error()
		e.stamp.Store(&fileStamp{}) // look again: it is the other file that may change
	}
	if len(errs) > 0 {
		if old != nil {
			e.user = old.user
		}
		if old == nil || old.problem != e.problem {
			us.log.Error("user file invalid", "user", name, "error", e.problem, "kept", e.user != nil)
		}
	} else {
		us.log.Info("user file", "user", name, "result", "read")
		us.warnExposed(name, e)
	}
	us.replace(name, e)
}

// uidHolder is another user who has u's uid according to his file, or nil.
func (us *users) uidHolder(set *userSet, u *user) *user {
	if u == nil || u.UID == nil {
		return nil
	}
	other := set.byUID[*u.UID]
	if other == nil || other.Name == u.Name {
		return nil
	}
	// He may have given it up in the same breath.
	if fresh, errs := us.readEntry(other.Name); fresh == nil || errs == nil && (fresh.user.UID == nil || *fresh.user.UID != *u.UID) {
		return nil
	}
	return other
}

// replace installs a set with another entry for name, nil for none.
func (us *users) replace(name string, e *userEntry) {
	entries := maps.Clone(us.current.Load().entries)
	if delete(entries, name); e != nil {
		entries[name] = e
	}
	us.current.Store(newUserSet(entries))
}

// refresh brings every entry up to date: one stat(2) a user.
func (us *users) refresh() {
	us.mu.Lock()
	defer us.mu.Unlock()
	names, err := us.list()
	if err != nil {
		us.dirTrouble(err.Error())
		return
	}
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = true
	}
	known := us.current.Load().entries
	for name := range known {
		if !there[name] {
			us.follow(name)
		}
	}
	for _, name := range names {
		if known[name] != nil || checkUserName(name) == nil { // which takes as long as the rest of it
			us.follow(name)
		}
	}
}

// dirChanged tells whether files may have come, gone or been renamed since they were
// last listed.
func (us *users) dirChanged() bool {
	info, err := os.Stat(us.dir)
	us.mu.Lock()
	defer us.mu.Unlock()
	stamp := fileStamp{}
	if err == nil {
		stamp = stampFor(info)
	}
	return stamp == fileStamp{} || stamp != us.dirStamp
}

// byCertificate is the users whom the client certificate with this fingerprint
// ("sha256:" and hex digits) logs in, by name. A certificate that was added to another
// file by an editor that writes in place may be missed while it still names one user.
func (us *users) byCertificate(fingerprint string) []*user {
	fp, err := normalFingerprint(fingerprint)
	if err != nil {
		return nil
	}
	return us.lookup(func(set *userSet) []*user { return set.byCertificate[fp] })
}

// byUID is the user whom this uid logs in through the local socket, or nil.
func (us *users) byUID(uid uint32) *user {
	found := us.lookup(func(set *userSet) []*user {
		if u := set.byUID[uid]; u != nil {
			return []*user{u}
		}
		return nil
	})
	if len(found) == 0 {
		return nil
	}
	return found[0]
}

// lookup is find, with the files that matter for its result up to date.
func (us *users) lookup(find func(*userSet) []*user) []*user {
	found := find(us.current.Load())
	if len(found) == 0 || us.dirChanged() {
		us.refresh()
	} else {
		for _, u := range found {
			us.get(u.Name)
		}
	}
	return find(us.current.Load())
}

// known calls fn for every valid user as of the last look at the files.
//
//go:noinline
func (us *users) known(fn func(*user)) {
	for _, e := range us.current.Load().entries {
		if e.user != nil {
			fn(e.user)
		}
	}
}

// isKnown tells whether there was a file of that name at the last look at them.
func (us *users) isKnown(name string) bool {
	_, ok := us.current.Load().entries[name]
	return ok
}

// all is every valid user, sorted by name.
func (us *users) all() []*user {
	us.refresh()
	return us.current.Load().sorted()
}

func (set *userSet) sorted() []*user {
	var list []*user
	for _, name := range slices.Sorted(maps.Keys(set.entries)) {
		if u := set.entries[name].user; u != nil {
			list = append(list, u)
		}
	}
	return list
}
