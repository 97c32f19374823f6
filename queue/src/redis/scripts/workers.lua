-- ARGV: time, how long a status counts. Reads only. Answers the statuses that do.
local ids = redis.call('ZRANGE', key('seen'), '(' .. whole(now - tonumber(ARGV[2])), '+inf', 'BYSCORE')
local found = {}
for _, status in ipairs(fetch('workers', ids)) do
  if status then found[#found + 1] = status end
end
return found
